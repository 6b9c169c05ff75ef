"""Learning curves: the accuracy of every level over the epochs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from anytimeify.errors import MissingExtraError
from anytimeify.io.files import replaced_file

__all__ = ["draw", "require_drawing"]


def draw(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], title: str) -> None:
    """Writes a PNG, from the lines of a run's metrics: accuracy above, loss below."""
    require_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [line["epoch"] for line in history]
    names = list(dict.fromkeys(name for line in history for name in line["accuracy"]))
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for place, name in enumerate(names):
        share = place / max(1, len(names) - 1)
        values = [line["accuracy"].get(name, float("nan")) for line in history]
        above.plot(epochs, values, label=name, color=(0.1 + 0.6 * (1 - share), 0.3, 0.2 + 0.7 * share), marker=".")
    above.set_ylabel("accuracy")
    above.set_title(title, fontsize=10)
    if names:
        above.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    below.plot(epochs, [line["loss"] for line in history], color="black", marker=".")
    below.set_ylabel("training loss")
    below.set_xlabel("epoch")
    for one in (above, below):
        one.grid(alpha=0.3)
    with replaced_file(path) as file:
        figure.savefig(file, dpi=110, format="png")


def require_drawing() -> None:
    """Raises `MissingExtraError` unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401  # whether it is there
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train", "learning curves") from error
