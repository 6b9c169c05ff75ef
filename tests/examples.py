"""How many generated examples a property is tried on: few by default, many where the profile of Hypothesis searches."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["examples"]

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]  # networks take long to make, and many are refused


def examples(by_default: int, search: int = 200, **options: Any) -> settings:
    """The settings of a property of whole networks."""
    count = by_default if settings.get_current_profile_name() == "default" else search
    return settings(max_examples=count, suppress_health_check=SLOW, **options)
