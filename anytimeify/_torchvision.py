"""Lets users import torchvision beside any build of torch, without importing either for those who do not."""

from __future__ import annotations

import importlib.abc
import sys

__all__ = ["cope_with_torchvision"]


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing: lets `prepare_torchvision` run when somebody imports torchvision, and steps aside."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "torchvision":
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            from anytimeify._torch import prepare_torchvision

            prepare_torchvision()


def cope_with_torchvision() -> None:
    """From now on `import torchvision`, whoever does it, is preceded by `prepare_torchvision`."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())
