"""Axis rules, one file per operation family. Registered by being here: importing this package imports every file in
it.
"""

import importlib
import pkgutil

from anytimeify.rules.named import named_rule, rule_of
from anytimeify.rules.op import Call, Dims, Op, Resize, Rule, axis_rule, registered

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Call", "Dims", "Op", "Resize", "Rule", "axis_rule", "named_rule", "registered", "rule_of"]
