"""One file for all levels against one file each: disk, memory, milliseconds, switching.

    python -m benchmarks.one_file --json rows.json --out docs/one_file_time.md
    python -m benchmarks.one_file --networks timm:resnet50 --schemes 'nested-channels{widths=0.25,0.5,1}' --size 224

**Resident**: how far a process grows that loads what is written and runs every level once; files of single levels are
loaded by one process together. Memory that was freed is given back before it is looked at.

**Milliseconds**: the median of the time that the computing thread takes for one sample, with one thread. **Times
that**: each level against the level's own file of the same format. Both are run in turns, and this is the median of
the ratios of neighbours. Stages compute a level from the start.

**Switching**: the median of what a run takes longer after another level than after the same one, of the level where
that is largest. **Error**: the largest difference to the files of single levels, over the largest value.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
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
FORMS = {
    "onnx alone": "ONNX, a file each",
    "onnx": "ONNX that switches",
    "stages": "ONNX stages",
    "pt2 alone": "PT2, a file each",
    "pt2": "PT2 of all",
}
ROUNDS = 15
Row = dict[str, Any]


def main() -> None:
    """Measures, prints a line for every network and scheme, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the rows here, and measure only what is missing"
    )
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args()
    rows: list[Row] = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for scheme in options.schemes:
        for network in options.networks:
            if any(row["network"] == network and row["scheme"] == scheme for row in rows):
                continue
            rows.append(_row(network, scheme, options.size, options.rounds))
            print("\n".join(_lines(rows[-1])), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.out:
        options.out.write_text(_page(rows, options.networks))


# A row.


def _row(network: str, scheme: str, size: int, rounds: int) -> Row:
    row: Row = {"network": network, "scheme": scheme, "rounds": rounds, "forms": {}}
    with tempfile.TemporaryDirectory() as name:
        try:
            row |= _write(network, scheme, size, Path(name))
        except Exception as error:  # of `transform`, or of an exporter: the row says so
            return {**row, "refused": str(error).splitlines()[0]}
        for form in FORMS:
            if row["disk"].get(form) is not None:
                row["forms"][form] = {"resident": _ask("resident", name, form, rounds)}
        for format in ("onnx", "pt2"):
            for form, found in _ask("times", name, format, rounds).items():
                row["forms"][form] |= found
    return row


def _write(network: str, scheme: str, size: int, folder: Path) -> Row:
    """Writes all forms into the folder, and gives their sizes in MiB."""
    import torch

    import anytimeify
    from anytimeify.errors import first_line
    from anytimeify.storage.export import export_onnx, export_pt2

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    example = torch.randn(2, 3, size, size)
    net = anytimeify.transform(anytimeify.source(network), scheme, (example,), verify=False).eval()
    net.export(folder / "net.onnx")
    net.export(folder / "net.pt2", "pt2")
    levels = [level for level in net.levels if not level.training_only]
    for place, level in enumerate(levels):
        extract = net.extract(level.index)
        export_onnx(extract, (example,), folder / f"level_{place}.onnx")
        export_pt2(extract, (example,), folder / f"level_{place}.pt2")
    disk: dict[str, float] = {"onnx": _mib(folder, "net.onnx*"), "pt2": _mib(folder, "net.pt2")}
    largest = {}
    for format in ("onnx", "pt2"):
        disk[f"{format} alone"] = _mib(folder, f"level_*.{format}*")
        largest[format] = max(_mib(folder, f"level_{place}.{format}*") for place in range(len(levels)))
    found = {"levels": [level.name for level in levels], "disk": disk, "largest": largest}
    try:
        net.export(folder / "stages", "staged")
        disk["stages"] = _mib(folder / "stages", "*")
    except anytimeify.AnytimeError as error:
        found["no stages"] = first_line(error)
    return found


def _mib(folder: Path, pattern: str) -> float:
    return sum(file.stat().st_size for file in folder.glob(pattern)) / 2**20


def _ask(*what: object) -> Any:
    """What a process of its own finds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.one_file.measure", *map(str, what)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


# The page.


def _page(rows: Sequence[Row], networks: Sequence[str]) -> str:
    import onnxruntime
    import torch

    lines = [
        "# One file for all levels, measured",
        "",
        f"`python -m benchmarks.one_file --out docs/one_file_time.md`, torch {torch.__version__}, onnxruntime "
        f"{onnxruntime.__version__}, one thread, one sample; {_rounds(rows)} rounds.",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(),
    ]
    head = (
        "scheme",
        "form",
        "disk, MiB",
        "of the largest",
        "resident, MiB",
        "ms",
        "times that",
        "switching, ms",
        "error",
    )
    for network in networks:
        own = [row for row in rows if row["network"] == network]
        if not own:
            continue
        lines += ["", f"## {network}", "", "| " + " | ".join(head) + " |", "|---|---" + "|--:" * (len(head) - 2) + "|"]
        lines += [line for row in own for line in _lines(row)]
    return "\n".join(lines) + "\n"


def _rounds(rows: Sequence[Row]) -> str:
    least, most = (found({row.get("rounds", ROUNDS) for row in rows}) for found in (min, max))
    return f"{least}" if least == most else f"{least} to {most}"


def _lines(row: Row) -> list[str]:
    if "refused" in row:
        return [f"| `{row['scheme']}` | {row['refused']} |" + " |" * 7]
    lines = [_line(row, form, found) for form, found in row["forms"].items()]
    if "no stages" in row:
        lines.append(f"|  | {FORMS['stages']}: {row['no stages']} |" + " |" * 7)
    return lines


def _line(row: Row, form: str, found: Mapping[str, Any]) -> str:
    format = "pt2" if form.startswith("pt2") else "onnx"
    cells = [
        f"`{row['scheme']}`" if form == "onnx alone" else "",
        FORMS[form],
        f"{row['disk'][form]:.1f}",
        f"{row['disk'][form] / row['largest'][format]:.3f}",
        f"{found['resident']:.0f}",
        " ".join(f"{one:.2f}" for one in found["ms"]),
        " ".join(f"{one:.3f}" for one in found.get("ratios", ())),
        f"{found['switching']:.2f}" if "switching" in found else "",
        f"{found['error']:.0e}" if "error" in found else "",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
