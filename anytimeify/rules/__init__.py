"""Axis rules, one file per operation family. Registered by being here: importing this package imports every file in
it.
"""

import importlib
import pkgutil

from anytimeify.rules import table
from anytimeify.rules.op import Call, Dims, Op, Resize
from anytimeify.rules.table import Rule, axis_rule, contractions, has_kind, registered, rule_of

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

table.seal()

__all__ = [
    "Call",
    "Dims",
    "Op",
    "Resize",
    "Rule",
    "axis_rule",
    "contractions",
    "has_kind",
    "registered",
    "rule_of",
]
