"""One file for all levels against one file each: disk, memory, milliseconds, switching.

    python -m benchmarks.one_file --out docs/one_file_time.md
    python -m benchmarks.one_file --networks timm:resnet50 --schemes 'nested-channels{widths=0.25,0.5,1}' --size 224

Each file is loaded in a process of its own, which says how far its resident memory grows. Milliseconds are the minimum
of many runs of one sample with one thread, those of the switching file and of the level's own taken in turns.
Switching: what a run takes longer after another level than after the same one. `error`: the largest difference between
the switching file and the files of single levels, over the largest value.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

NETWORKS = ("timm:resnet50", "timm:mobilenetv3_large_100", "timm:convnext_atto", "timm:deit_tiny_patch16_224")
SCHEMES = (
    "nested-channels{widths=0.25,0.5,1}",
    "nested-channels{widths=0.25,0.5,1 connectivity=triangular}",
    "nested-weights{densities=0.1,0.3,1}",
    "nested-depth",
    "nested-resolution",
    "hierarchical-ensemble{depth=2}",
    "auxiliary-branches",
)
ROUNDS = 15


def main() -> None:
    """Prints a row for every network and scheme, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(json.dumps(_resident(options.resident)))
    elif options.measure:
        print(json.dumps(_measure(options.measure)))
    else:
        rows = [_row(network, scheme, options.size) for network in options.networks for scheme in options.schemes]
        text = _page([row for row in rows if row])
        print(text)
        if options.out:
            options.out.write_text(text)


def _row(network: str, scheme: str, size: int) -> str | None:
    import torch

    import anytimeify
    from anytimeify.storage.export import export_onnx, export_pt2

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    example = torch.randn(2, 3, size, size)
    try:
        net = anytimeify.transform(anytimeify.source(network), scheme, (example,), verify=False).eval()
    except anytimeify.AnytimeError as error:
        print(f"{network} {scheme}: {error}", file=sys.stderr)
        return None
    levels = [level.index for level in net.levels if not level.training_only]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net.export(folder / "net.onnx")
        net.export(folder / "net.pt2", "pt2")
        for place, index in enumerate(levels):
            export_onnx(net.extract(index), (example,), folder / f"level_{place}.onnx")
            export_pt2(net.extract(index), (example,), folder / f"level_{place}.pt2")
        staged = None
        if net.resumable and len({str(one) for one in net.served}) < 2:
            net.staged(fold=False).export(folder / "stages", ("onnx",))
            staged = sum(file.stat().st_size for file in (folder / "stages").glob("*.onnx"))
        sizes = {file.name: file.stat().st_size / 2**20 for file in folder.iterdir() if file.is_file()}
        found = _ask("--measure", folder)
        resident = [_ask("--resident", folder / f"level_{place}.onnx") for place in range(len(levels))]
        together = _ask("--resident", folder / "net.onnx")
    largest = max(sizes[f"level_{place}.onnx"] for place in range(len(levels)))
    apart = sum(sizes[f"level_{place}.onnx"] for place in range(len(levels)))
    pt2 = max(sizes[f"level_{place}.pt2"] for place in range(len(levels)))
    ratios = [both / alone for both, alone in zip(found["switching"], found["alone"], strict=True)]
    cells = [
        network,
        scheme,
        f"{apart:.1f}",
        f"{sizes['net.onnx']:.1f}",
        f"{sizes['net.onnx'] / largest:.3f}",
        "-" if staged is None else f"{staged / 2**20:.1f}",
        f"{sizes['net.pt2'] / pt2:.3f}",
        f"{sum(resident):.0f}",
        f"{together:.0f}",
        " ".join(f"{one:.2f}" for one in found["alone"]),
        " ".join(f"{one:.2f}" for one in ratios),
        f"{found['switch']:.2f}",
        f"{found['error']:.0e}",
    ]
    line = "| " + " | ".join(cells) + " |"
    print(line, flush=True)
    return line


def _ask(what: str, path: Path) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.one_file", what, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _resident(file: Path) -> float:
    """MiB that a process grows by when it loads a file and runs it once at every level."""
    import onnxruntime  # noqa: F401  # what it takes itself is no model's
    import psutil

    before = psutil.Process().memory_info().rss
    session = _session(file)
    feed = _feed(session)
    for level in range(_levels(session)):
        session.run(None, _at(feed, level))
    return (psutil.Process().memory_info().rss - before) / 2**20


def _feed(session: Any) -> dict[str, Any]:
    import numpy as np

    generator = np.random.default_rng(0)
    return {
        one.name: np.array(0)
        if one.type == "tensor(int64)"
        else generator.standard_normal([1, *one.shape[1:]]).astype("f4")
        for one in session.get_inputs()
    }


def _at(feed: Mapping[str, Any], level: int) -> dict[str, Any]:
    import numpy as np

    return {name: np.array(level) if name == "level" else value for name, value in feed.items()}


def _levels(session: Any) -> int:
    text = session.get_modelmeta().custom_metadata_map.get("anytimeify")
    return len(json.loads(text)["levels"]) if text else 1


def _measure(folder: Path) -> dict[str, Any]:
    import numpy as np

    together = _session(folder / "net.onnx")
    feed = _feed(together)
    count = _levels(together)
    plain = {name: value for name, value in feed.items() if name != "level"}
    alone = [_session(folder / f"level_{place}.onnx") for place in range(count)]
    best: dict[tuple[str, int], float] = {}
    results: dict[tuple[str, int], Any] = {}

    def run(what: str, place: int) -> None:
        session, given = (together, _at(feed, place)) if what != "alone" else (alone[place], plain)
        start = time.perf_counter()
        result = session.run(None, given)[0]
        took = (time.perf_counter() - start) * 1e3
        results[what, place] = result
        best[what, place] = min(best.get((what, place), took), took)

    for _ in range(ROUNDS):
        for place in range(count):
            run("alone", place)
            together.run(None, _at(feed, place))
            run("same", place)
        for place in reversed(range(count)):
            together.run(None, _at(feed, (place + 1) % count))
            run("other", place)
    error = max(
        float(np.abs(results["same", place] - results["alone", place]).max() / np.abs(results["alone", place]).max())
        for place in range(count)
    )
    places = range(count)
    return {
        "alone": [best["alone", place] for place in places],
        "switching": [best["same", place] for place in places],
        "switch": max(best["other", place] - best["same", place] for place in places),
        "error": error,
    }


def _page(rows: Sequence[str]) -> str:
    import onnxruntime
    import torch

    head = (
        "network", "scheme", "separate, MiB", "one file, MiB", "of the largest", "stages, MiB", "pt2, of the largest",
        "separate, resident MiB", "one file, resident MiB", "ms, level by level", "one file: times that",
        "switching, ms", "error",
    )  # fmt: skip
    lines = [
        "# One file for all levels, measured",
        "",
        f"`python -m benchmarks.one_file --out docs/one_file_time.md`, torch {torch.__version__}, onnxruntime "
        f"{onnxruntime.__version__}, one thread, one sample.",
        "",
        *(line.strip() for line in (__doc__ or "").split("\n\n")[2:]),
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *rows,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
