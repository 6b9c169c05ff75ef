"""Settings that every test shares: threads, seeds, Hypothesis profiles, and which marks skip themselves."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import Phase, is_hypothesis_test, settings
from hypothesis.internal.conjecture import engine

# Inputs are small, and xdist runs one process per core: threads inside a process would only fight over the cores.
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))

# What other runs measured is none of their business, nor what they measure that of others.
os.environ["ANYTIMEIFY_CACHE"] = "off"

# The default profile gives the same examples on every machine, so that a red test is red for everybody, and tells what
# failed within seconds: it stops at the first failure, shrinks it for so long, and does not explain it. The slow one
# searches: new examples on each run, with the line that repeats a failure. `--hypothesis-profile=slow` chooses it.
SHRINKING_SECONDS = 5
settings.register_profile(
    "default",
    max_examples=25,
    derandomize=True,
    deadline=None,
    print_blob=True,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    report_multiple_bugs=False,
)
settings.register_profile("slow", max_examples=2000, derandomize=False, deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.hookimpl(trylast=True)  # after the plugin of Hypothesis, which loads the profile that was asked for
def pytest_configure() -> None:
    """Bounds how long a failure is shrunk: five minutes of runs otherwise. There is no setting for it, only a constant
    that Hypothesis leaves open to be changed."""
    if settings.get_current_profile_name() == "default":
        engine.MAX_SHRINKING_SECONDS = SHRINKING_SECONDS


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random weights and inputs are the same whichever tests ran before, and in whichever process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    """All networks share one `forward`, of which the compiler keeps eight versions at most: a test that compiles leaves
    none to the next."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of generated examples, which take longest, come first, so that no process waits for one at the end. Tests
    marked `cuda` run wherever there is a GPU and are skipped elsewhere; nobody has to ask for them."""
    items.sort(key=lambda item: not is_hypothesis_test(getattr(item, "obj", None)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays, so the search for garbage, a tenth of the time, leaves it out."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
