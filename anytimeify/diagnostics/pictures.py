"""Pictures: a figure that is given its size and its panels, and is written when it is whole."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anytimeify.errors import ArtifactError, MissingExtraError
from anytimeify.io.files import replaced_file

__all__ = ["drawing", "grid"]


@contextmanager
def drawing(path: str | os.PathLike[str], doing: str) -> Iterator[Any]:
    """A figure of matplotlib, written to `path` at the end. Its suffix chooses the format.

    Raises `MissingExtraError` without the extra `plot`, `ArtifactError` where the picture cannot be written."""
    target = Path(path)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", doing) from error
    with replaced_file(target) as temporary:
        figure = Figure(layout="constrained")  # no pyplot: no global state, no window
        yield figure
        formats = figure.canvas.get_supported_filetypes()
        if target.suffix.removeprefix(".").lower() not in formats:
            known = ", ".join(sorted(formats))
            raise ArtifactError(f"cannot draw {target}: its suffix chooses the format, one of {known}")
        figure.savefig(temporary, dpi=100)


def grid(figure: Any, count: int, side: float) -> list[Any]:
    """So many panels, `side` inches wide, about as many rows as columns; places that are left stay empty."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure.set_size_inches(side * columns + 0.8, side * rows + 0.4)
    panels: list[Any] = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels[count:]:
        panel.remove()
    return panels[:count]
