"""The sections of this project's docstrings, as griffe's Google style reads them."""

from __future__ import annotations

import inspect
import re
from typing import Any

from griffe import Extension, Object

__all__ = ["Sections"]


class Sections(Extension):
    """`Parameters` alone on a line, with what follows indented, is a section. `low, high: ...` is said of each."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for every object that is found in the sources."""
        if obj.docstring:
            text = inspect.cleandoc(obj.docstring.value)
            text = re.sub(r"^Parameters$", "Parameters:", text, flags=re.MULTILINE)
            obj.docstring.value = _SEVERAL.sub(_each, text)


_SEVERAL = re.compile(r"^( {4})((?:\w+, )+\w+): (.*(?:\n {5}.*)*)", re.MULTILINE)


def _each(found: re.Match[str]) -> str:
    indent, names, about = found.groups()
    return "\n".join(f"{indent}{name}: {about}" for name in names.split(", "))
