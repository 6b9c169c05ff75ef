"""`open_data`: from a name of data, the `--data` of a command line, to the samples.

A source of data is a file beside this one with a `KIND`; being there is being registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from anytimeify.errors import ArgumentError, ArtifactError, refusing
from anytimeify.train.data.samples import Data, DataKind

__all__ = ["data_kinds", "open_data"]


@cache
def data_kinds() -> tuple[DataKind, ...]:
    """All sources of data, factories last."""
    package = __name__.rpartition(".")[0]
    beside = pkgutil.iter_modules(importlib.import_module(package).__path__)
    modules = [importlib.import_module(f"{package}.{name}") for name in sorted(info.name for info in beside)]
    found = [module.KIND for module in modules if hasattr(module, "KIND")]
    return tuple(sorted(found, key=lambda kind: not kind.prefix))


def open_data(spec: str) -> Data:
    """The data that `spec` names, such as `digits`, `cifar100:DIR` or `package.module:factory`.

    Reading runs no code that is not installed: no pickle. Raises `ArtifactError` for files that are missing or damaged
    and for names that stand for nothing, `MissingExtraError` where a package is needed that is not installed.
    """
    if not isinstance(spec, str):
        raise ArgumentError(f"data are given as {spec!r}: expected a text, such as 'digits'")
    with refusing(ArtifactError, f"'{spec}'"):
        for kind in data_kinds():
            if kind.prefix and kind.matches(spec):
                return kind.load(spec.removeprefix(kind.prefix).removeprefix(":"))
        factories = data_kinds()[-1]
        if ":" in spec:
            return factories.load(spec)
    raise ArtifactError(f"'{spec}' names no data; there are {', '.join(kind.example for kind in data_kinds())}")
