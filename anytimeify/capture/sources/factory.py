"""`package.module:factory`: any Python callable that returns a model, or a model and its example inputs."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from torch import nn

from anytimeify.capture.sources.source import Source, SourceKind
from anytimeify.errors import CaptureError

__all__ = ["KIND"]


def _load(name: str, trust_pickle: bool) -> Source:
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it; a console script does not
    found: Any
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise CaptureError(
            f"Cannot import '{module_name}' for the source '{name}': {error}. Check the name and PYTHONPATH."
        ) from error
    except (Exception, SystemExit) as error:
        raise CaptureError(f"Importing '{module_name}' raised {type(error).__name__}: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise CaptureError(f"'{module_name}' has no '{attribute}'. A source is package.module:factory.")
        found = getattr(found, part)
    result = found
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise CaptureError(f"'{name}' is a {type(found).__name__}, neither a model nor a function that makes one.")
        try:
            result = found()
        except (Exception, SystemExit) as error:
            raise CaptureError(
                f"'{name}' raised {type(error).__name__}: {error}. It is called without arguments."
            ) from error
    model, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"'{name}' returned a {type(model).__name__}; return an nn.Module, or (nn.Module, example inputs)."
        )
    return Source(model, inputs, name)


KIND = SourceKind("package.module:factory", _load, pattern=r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
