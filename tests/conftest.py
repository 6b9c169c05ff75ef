"""Settings that every test shares: threads, seeds, Hypothesis profiles, and which marks skip themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# Inputs are small, and xdist runs one process per core: threads inside a process would only fight over the cores.
torch.set_num_threads(1)

# The default profile gives the same examples on every machine, so that a red test is red for everybody. The slow one
# searches: new examples on each run, with the line that repeats a failure. `--hypothesis-profile=slow` chooses it.
settings.register_profile("default", max_examples=25, derandomize=True, deadline=None, print_blob=True)
settings.register_profile("slow", max_examples=2000, derandomize=False, deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random weights and inputs are the same whichever tests ran before, and in whichever process."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` run wherever there is a GPU and are skipped elsewhere; nobody has to ask for them."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
