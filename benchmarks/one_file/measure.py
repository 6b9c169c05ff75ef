"""What a process of its own finds out about the files in a folder; prints JSON.

python -m benchmarks.one_file.measure resident FOLDER FORM ROUNDS
python -m benchmarks.one_file.measure times FOLDER FORMAT ROUNDS
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

__all__ = ["main"]

Runs = Sequence[Callable[[], Any]]
"""What computes each of the levels."""

ALONE, OTHER = "alone", "other"


def main(what: str, folder: str, which: str, rounds: str) -> None:
    """Prints what was found."""
    found = resident(Path(folder), which) if what == "resident" else times(Path(folder), which, int(rounds))
    print(json.dumps(found))


def resident(folder: Path, form: str) -> float:
    """MiB that a process grows by when it loads a form and runs every level once."""
    opener = OPENERS[form]
    opener(folder, 0)  # what is imported is no model's
    before = _resident()
    runs = opener(folder, _count(folder))
    for run in runs:
        run()
    return _resident() - before


def times(folder: Path, format: str, rounds: int) -> dict[str, Any]:
    """Of each form of a format: milliseconds, ratios to the files of single levels, switching, error."""
    count = _count(folder)
    forms = [form for form in (format, "stages") if form == format or (format == "onnx" and (folder / form).exists())]
    opened = {form: OPENERS[form](folder, count) for form in forms}
    alone = OPENERS[f"{format} alone"](folder, count)
    expected = [run() for run in alone]
    took: dict[tuple[str, int], list[float]] = {}

    def timed(what: str, place: int, run: Callable[[], Any]) -> None:
        start = time.thread_time()
        run()
        took.setdefault((what, place), []).append((time.thread_time() - start) * 1e3)

    for place in range(count):  # nothing is timed the first time
        for runs in (alone, *opened.values()):
            runs[place]()
    for _ in range(rounds):
        for place in range(count):
            timed(ALONE, place, alone[place])
            for form, runs in opened.items():
                runs[(place + 1) % count]()
                timed(f"{form} {OTHER}", place, runs[place])
                timed(form, place, runs[place])
    places = range(count)
    found: dict[str, Any] = {f"{format} alone": {"ms": [median(took[ALONE, place]) for place in places]}}
    for form, runs in opened.items():
        longer = [
            median(other - same for other, same in zip(took[f"{form} {OTHER}", place], took[form, place], strict=True))
            for place in places
        ]
        found[form] = {
            "ms": [median(took[form, place]) for place in places],
            "ratios": [
                median(own / one for own, one in zip(took[form, place], took[ALONE, place], strict=True))
                for place in places
            ],
            "switching": max(longer),
            "error": max(_error(runs[place](), expected[place]) for place in places),
        }
    return found


def _error(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _count(folder: Path) -> int:
    return len(list(folder.glob("level_*.pt2")))


def _resident() -> float:
    import psutil

    ctypes.CDLL(None).malloc_trim(0)
    return float(psutil.Process().memory_info().rss) / 2**20


# How each form is opened, with so many levels.


def _sample(shape: Sequence[Any]) -> Any:
    return np.random.default_rng(0).standard_normal([1, *shape[1:]]).astype("f4")


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _onnx_alone(folder: Path, count: int) -> Runs:
    import onnxruntime  # noqa: F401  # also where nothing is opened

    def run(session: Any) -> Callable[[], Any]:
        (entry,) = session.get_inputs()
        feed = {entry.name: _sample(entry.shape)}
        return lambda: session.run(None, feed)[0]

    return [run(_session(folder / f"level_{place}.onnx")) for place in range(count)]


def _onnx(folder: Path, count: int) -> Runs:
    import onnxruntime  # noqa: F401

    if not count:
        return []
    session = _session(folder / "net.onnx")
    entry, level = session.get_inputs()

    def run(place: int) -> Callable[[], Any]:
        feed = {entry.name: _sample(entry.shape), level.name: np.array(place)}
        return lambda: session.run(None, feed)[0]

    return [run(place) for place in range(count)]


def _stages(folder: Path, count: int) -> Runs:
    import onnxruntime  # noqa: F401

    from anytimeify.serving.onnx_stages import OnnxStages

    if not count:
        return []
    levels = OnnxStages.of(folder / "stages", threads=1)
    given = [_sample(one.sizes) for one in levels.inputs]
    return [lambda place=place: levels.run(place, given) for place in range(count)]  # type: ignore[misc]


def _pt2_alone(folder: Path, count: int) -> Runs:
    return _programs([(folder / f"level_{place}.pt2", "model") for place in range(count)])


def _pt2(folder: Path, count: int) -> Runs:
    return _programs([(folder / "net.pt2", f"level_{place}") for place in range(count)])


def _programs(files: Sequence[tuple[Path, str]]) -> Runs:
    import torch

    from anytimeify.capture import load_exported

    torch.set_num_threads(1)

    def run(file: Path, name: str) -> Callable[[], Any]:
        program = load_exported(file, model=name)
        assert program.example_inputs is not None
        (example,) = program.example_inputs[0]
        module, given = program.module(check_guards=False), torch.from_numpy(_sample(example.shape))

        def call() -> Any:
            with torch.inference_mode():
                return module(given).numpy()

        return call

    return [run(*one) for one in files]


OPENERS: dict[str, Callable[[Path, int], Runs]] = {
    "onnx alone": _onnx_alone,
    "onnx": _onnx,
    "stages": _stages,
    "pt2 alone": _pt2_alone,
    "pt2": _pt2,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
