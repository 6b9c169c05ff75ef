"""What changes the state of the whole process leaves it as it was, also where threads do so at the same time."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from anytimeify import NestedChannels, transform
from anytimeify._torch import quiet_exporter
from anytimeify.process import without_garbage_search
from anytimeify.storage.export import quiet


def state() -> tuple[Any, ...]:
    disabled = logging.getLogger("torch._dynamo").disabled, logging.root.manager.disable
    return list(warnings.filters), sys.stdout, sys.stderr, disabled, gc.isenabled()


@pytest.mark.parametrize("context", [quiet, quiet_exporter, without_garbage_search])
def test_contexts_take_turns(context: Callable[[], AbstractContextManager[None]]) -> None:
    before = state()
    inside, go_on, second_in = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with context():
            inside.set()
            assert go_on.wait(30)

    def second() -> None:
        assert inside.wait(30)
        with context():
            second_in.set()

    threads = [threading.Thread(target=one) for one in (first, second)]
    for thread in threads:
        thread.start()
    assert inside.wait(30)
    assert not second_in.wait(0.1)  # the second one is kept out
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert second_in.is_set()
    assert state() == before


def test_contexts_nest() -> None:
    before = state()
    with quiet_exporter(), quiet(), quiet_exporter():
        assert state() != before
    assert state() == before
    with without_garbage_search(), without_garbage_search():
        assert not gc.isenabled()
    assert state() == before


def test_who_looks_for_no_garbage_goes_on_so() -> None:
    gc.disable()
    try:
        with without_garbage_search():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_one_backbone_in_two_threads() -> None:
    backbone = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(128, 4)
    )
    before = state()
    made: list[Any] = []

    def make() -> None:
        made.append(transform(backbone, NestedChannels((0.5, 1)), torch.randn(2, 3, 6, 6)))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [len(net.levels) for net in made] == [2, 2]
    assert all(module.training for module in backbone.modules())
    assert state() == before
