"""Levels of the papers' networks cost what their extracts do."""

from __future__ import annotations

import pytest

from anytimeify import papers
from anytimeify.testing.costs import assert_costs_are_found

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", papers.names())
def test_network(name: str) -> None:
    assert_costs_are_found(papers.recipe(name).build(verify=False))
