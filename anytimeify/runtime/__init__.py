"""`AnytimeModel` and what it does: levels, budgets, extracts, calibration, masks, new heads, loading.

`AnytimeRunner` and `Adaptive`, which serve it, need no torch for ONNX files; they are in `anytimeify.serving`.
"""

from typing import TYPE_CHECKING

from anytimeify.lazy import lazily

if TYPE_CHECKING:
    from anytimeify.errors import Overloaded
    from anytimeify.serving.adaptive import Adaptive, Statistics
    from anytimeify.serving.benchmark import bench
    from anytimeify.serving.runner import AnytimeRunner, MeasuredLevel, Prediction

__all__ = ["Adaptive", "AnytimeRunner", "MeasuredLevel", "Overloaded", "Prediction", "Statistics", "bench"]

_PLACES = {
    "Adaptive": "anytimeify.serving.adaptive",
    "AnytimeRunner": "anytimeify.serving.runner",
    "MeasuredLevel": "anytimeify.serving.runner",
    "Overloaded": "anytimeify.errors",
    "Prediction": "anytimeify.serving.runner",
    "Statistics": "anytimeify.serving.adaptive",
    "bench": "anytimeify.serving.benchmark",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__, _PLACES)
