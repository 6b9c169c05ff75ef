"""Axis rules, one file per operation family. Registered by being here: importing this package imports every file in
it.
"""

import importlib
import pkgutil

from anytimeify.rules import table
from anytimeify.rules.contractions import Contraction
from anytimeify.rules.layers import Layers
from anytimeify.rules.op import Call, Dims, Op, Resize
from anytimeify.rules.table import (
    Kind,
    Rule,
    axis_rule,
    contractions,
    has_kind,
    notation_of,
    registered,
    rule_of,
    traits,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

table.seal()

__all__ = [
    "Call",
    "Contraction",
    "Dims",
    "Kind",
    "Layers",
    "Op",
    "Resize",
    "Rule",
    "axis_rule",
    "contractions",
    "has_kind",
    "notation_of",
    "registered",
    "rule_of",
    "traits",
]
