"""What an exporter took for granted about the size of the batch, because `forward()` asked.

if x.shape[0] > 2: ...      the graph is right for batches of 3 and more: a range
if x.shape[0] % 2: ...      no range says that
"""

from __future__ import annotations

import re

import sympy
from torch.export import ExportedProgram

__all__ = ["batch_range", "unkept_guard"]

# Comparisons with a number end up in the range, no batch is of no sample, and inputs of one batch have one size.
_SIZE = r"L(?:\['\w+'\]|\[\d+\])+\.size\(\)\[\d+\]"
_MULTIPLE = rf"(?:\d+\*)?{_SIZE}"
_KEPT = re.compile(rf"{_MULTIPLE} (?:[<>]=? \d+|!= [01])|\d+ [<>]=? {_MULTIPLE}|{_SIZE} == {_SIZE}")


def batch_range(exported: ExportedProgram, batch: str | None) -> tuple[int, int | None]:
    """The smallest and the largest batch that an export is right for; None where there is no largest.

    Exporters start ranges at 2 whatever the model asks, so that 2 means 1 here."""
    for symbol, found in exported.range_constraints.items():
        if str(symbol) == batch:
            least, most = (int(one) if isinstance(one, sympy.Integer) else None for one in (found.lower, found.upper))
            return (1 if least is None or least <= 2 else least), most
    return 1, None


def unkept_guard(exported: ExportedProgram) -> str | None:
    """The first condition on sizes that decided something, and that no range of the batch holds."""
    return next((guard for guard in exported._guards_code if not _KEPT.fullmatch(guard)), None)
