"""Which form is taken: as the settings say, or what is fastest where it runs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anytimeify import kernels
from anytimeify.kernels import Form, Kind, choice
from anytimeify.kernels.choice import WORTH, Case, choose, pays

MASKED, TWO, FOUR = Form("masked"), Form("convolution", 2), Form("convolution", 4)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    kernels.forget()
    yield
    kernels.forget()


def case(work: int = WORTH, default: Form = TWO) -> Case:
    return Case(8, work, torch.device("cpu"), (MASKED, TWO, FOUR), default, lambda: "this layer")


class Clock:
    """Time passes as the forms say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.now, self.calls = 0.0, 0
        self.seconds = {MASKED: seconds["masked"], TWO: seconds["two"], FOUR: seconds["four"]}
        monkeypatch.setattr(time, "thread_time", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def __call__(self, form: Form) -> Form:
        self.now += self.seconds[form]
        self.calls += 1
        return form


def test_fastest_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, masked=3, two=2, four=1)
    assert choose(case(), clock) == FOUR
    assert kernels.choices() == {"this layer": FOUR}
    before = clock.calls
    assert choose(case(), clock) == FOUR
    assert clock.calls == before + 1


def test_what_is_nearly_as_fast_does_not_replace_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(case(), Clock(monkeypatch, masked=3, two=1, four=0.96)) == TWO


def test_hopeless_forms_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, masked=0.1, two=0.002, four=0.0015)
    assert choose(case(), clock) == FOUR
    assert clock.calls == 3 * 2 + 4 * 2 + 1


def test_what_takes_long_is_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, masked=3, two=2.5, four=2.1)
    assert choose(case(), clock) == FOUR
    assert clock.calls == 3 * 2 + 3 + 1


def test_small_layers_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(case(WORTH - 1), Clock(monkeypatch, masked=1, two=2, four=3)) == TWO
    assert not kernels.choices()


def test_deterministic_algorithms_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, masked=1, two=2, four=3)
    torch.use_deterministic_algorithms(True)
    try:
        assert choose(case(), clock) == TWO
    finally:
        torch.use_deterministic_algorithms(False)


def test_form_is_fixed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, masked=1, two=2, four=3)
    clock.seconds[Form("convolution", 8)] = 1
    with kernels.form("masked"):
        assert choose(case(), clock) == MASKED
        with kernels.form("prefixes"):
            assert choose(case(), clock) == Form("convolution", 8)
        with kernels.form("blocks"):
            assert choose(case(), clock) == TWO
        with kernels.form("blocks", count=4):
            assert choose(case(), clock) == FOUR
        assert choose(case(), clock) == MASKED
    assert not kernels.choices()
    assert choose(case(), clock) == MASKED
    assert kernels.choices()


@pytest.mark.parametrize("first_out", [0, 1])
def test_blocks_of_two_threads_leave_the_setting_as_it_was(first_out: int) -> None:
    entered, left = threading.Barrier(2, timeout=30), [threading.Event(), threading.Event()]
    seen: list[Form] = []

    def inside(number: int, kind: Kind) -> None:
        if number:
            entered.wait()  # behind the other
        with kernels.form(kind):
            entered.wait()
            if not number:
                entered.wait()
            seen.append(choose(case(WORTH - 1), lambda form: form))
            if number != first_out:
                assert left[first_out].wait(30)
        left[number].set()

    before = choose(case(WORTH - 1), lambda form: form)
    kinds: tuple[Kind, ...] = ("masked", "blocks")
    threads = [threading.Thread(target=inside, args=(number, kind)) for number, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 2
    assert choose(case(WORTH - 1), lambda form: form) == before == TWO
    with kernels.form("masked"):
        assert choose(case(WORTH - 1), lambda form: form) == MASKED


def test_settings_that_stay_do_not_pile_up() -> None:
    for kind in ("masked", "prefixes") * 20:
        kernels.form(kind)
    gc.collect()
    try:
        assert choose(case(), lambda form: form) == Form("convolution", 8)
        assert len(choice._settings) <= 3
    finally:
        kernels.form("measured")


def test_refuses_unknown_forms() -> None:
    with pytest.raises(ValueError, match="'masked', 'prefixes', 'blocks', 'rule', 'measured'"):
        kernels.form("fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count=0"):
        kernels.form("blocks", 0)
    with pytest.raises(ValueError, match="count=2"):
        kernels.form("masked", 2)


# Whether a layer is computed in blocks at all.


class Layers:
    """A layer in both ways, and how long a step of each takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plain: float, in_blocks: float) -> None:
        self.now, self.seconds, self.steps = 0.0, (plain, in_blocks), 0
        monkeypatch.setattr(time, "thread_time", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def plain(self, x: Tensor, *others: Tensor | None) -> Tensor:
        return self.turn(x, 0)

    def in_blocks(self, x: Tensor, *others: Tensor | None) -> Tensor:
        return self.turn(x, 1)

    def turn(self, x: Tensor, which: int) -> Tensor:
        self.steps += 1
        y = 2 * x
        y.register_hook(lambda grad: self.spend(which))  # what takes long is the backward pass
        return y

    def spend(self, which: int) -> None:
        self.now += self.seconds[which]

    def pays(self, work: int = WORTH) -> bool:
        x = torch.randn(2, requires_grad=True)
        return pays(lambda: case(work), self.plain, self.in_blocks, (x, torch.ones(2), None))


@pytest.mark.parametrize(("plain", "in_blocks", "expected"), [(2, 1, True), (1, 2, False), (1, 0.97, False)])
def test_blocks_are_taken_where_a_whole_step_gains(
    monkeypatch: pytest.MonkeyPatch, plain: float, in_blocks: float, expected: bool
) -> None:
    layers = Layers(monkeypatch, plain, in_blocks)
    assert layers.pays() is expected
    steps = layers.steps
    assert layers.pays() is expected
    assert layers.steps == steps, "measured once"


def test_settings_decide_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers(monkeypatch, 1, 1)
    for kind, expected in (("masked", False), ("prefixes", True), ("blocks", True), ("rule", True)):
        with kernels.form(kind):  # type: ignore[arg-type]  # the names of forms
            assert layers.pays() is expected
    assert not layers.pays(WORTH - 1)
    assert not layers.steps


def test_the_rule_of_thumb_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, masked=3, two=2, four=1)
    with kernels.form("rule"):
        assert choose(case(), clock) == TWO
        assert choose(case(default=MASKED), clock) == MASKED
    assert not kernels.choices()


def test_nothing_is_measured_under_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers(monkeypatch, 2, 1)
    with FlopCounterMode(display=False):
        assert not layers.pays()
    assert not layers.steps
    assert layers.pays()


def test_function_transforms_see_the_masked_layer() -> None:
    weight, x, levels = torch.randn(4, 4), torch.randn(3, 4), ([2, 4], [2, 4], 2)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return kernels.triangular_linear(x, weight, None, *levels).square().sum()

    with kernels.form("prefixes"):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    one = torch.func.grad(loss)(weight, x)
    torch.testing.assert_close(each.sum(0), one)
    assert (one[:2, 2:] == 0).all()


def test_layers_of_a_size_share_a_measurement() -> None:
    """Of a batch and of one a little larger; the number of threads and the memory format tell layers apart."""
    weight = torch.randn(32, 32, 3, 3)
    levels = ([8, 16, 24, 32], [8, 16, 24, 32], 4, [1, 1], [1, 1], [1, 1])
    for batch in (8, 9, 10):
        kernels.triangular_conv(torch.randn(batch, 32, 16, 16), weight, None, *levels)
    assert len(kernels.choices()) == 1
    wide = torch.randn(8, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    kernels.triangular_conv(wide, weight, None, *levels)
    assert len(kernels.choices()) == 2
