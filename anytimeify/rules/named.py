"""Rules for operators of other libraries, which are known by name.

Nobody imports those libraries for that: an operator exists from when its library is imported, which whoever has a model
of it has done.
"""

from __future__ import annotations

from typing import Any

from anytimeify._torch import OpOverload
from anytimeify.rules import op
from anytimeify.rules.op import Infer, Resizer, Rule, build_rule

__all__ = ["named", "named_rule", "rule_of"]

_NAMED: dict[str, Rule] = {}


def named_rule(
    name: str, rule: str | list[str] | Infer, *, literals: dict[str, str] | Resizer | None = None, macs: Any = ()
) -> None:
    """Register the rule of `library.operator.overload`, which need not exist; the rest as in `axis_rule`."""
    if name in _NAMED:
        raise ValueError(f"{name} has a rule already")
    _NAMED[name] = build_rule(rule, literals=literals, macs=macs)


def named() -> tuple[str, ...]:
    """The operators that have a rule by name."""
    return tuple(_NAMED)


def rule_of(target: Any) -> Rule | None:
    """The rule of an operation, or None."""
    rule = op.rule_of(target)
    return _NAMED.get(str(target)) if rule is None and isinstance(target, OpOverload) else rule
