"""Pictures: what they all need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anytimeify.errors import ArtifactError, MissingExtraError
from anytimeify.io.files import replaceable, replaced_file

__all__ = ["check_picture", "figure"]


@contextmanager
def figure(path: str | os.PathLike[str], panels: int = 1) -> Iterator[Any]:
    """A figure to draw into, which is written when the block ends. `ArtifactError` where it cannot be."""
    target = check_picture(path)
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.8 * panels, 3.6), layout="constrained")  # no pyplot: no global state, no window
    yield drawn
    for axes in drawn.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with replaced_file(target) as temporary:
        drawn.savefig(temporary, dpi=150)


def check_picture(path: str | os.PathLike[str]) -> Path:
    """The path of a picture that can be drawn. `ArtifactError` where it cannot be written, or its suffix names no
    format; `MissingExtraError` without matplotlib."""
    target = Path(path)
    if target.is_dir():
        raise ArtifactError(f"{target} is a folder: give the name of a picture to draw, such as levels.png")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "Drawing a report") from error
    formats = Figure().canvas.get_supported_filetypes()
    if target.suffix.removeprefix(".").lower() not in formats:
        raise ArtifactError(f"cannot draw {target}: its suffix chooses the format, one of {', '.join(sorted(formats))}")
    replaceable(target)
    return target
