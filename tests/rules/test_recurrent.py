"""Recurrent layers narrow as their own constructors do; their dropout follows the mode; their products are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from anytimeify import AnytimeModel, AnytimeWarning, NestedChannels, SchemeError, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.ir.schema import bound
from anytimeify.operators.modules import TrainingSwitch
from anytimeify.storage.export import export_onnx, export_pt2
from anytimeify.testing import assert_exactly_thin, check, randomise
from tests.rules.thin_copy import copy_blocks

aten = torch.ops.aten
HALF = NestedChannels(widths=(0.5, 1.0))
# torch says once in a process that its LSTM with projections does not use oneDNN
projections = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
STEPS, READ, CLASSES = 3, 8, 5


class Classifier(nn.Module):
    """A linear layer on every step, a recurrent layer, and a classifier of its last step."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int, share: int = 1, **options: Any) -> None:
        super().__init__()
        if "proj_size" in options:
            options["proj_size"] //= share
        self.embed = nn.Linear(6, READ // share)
        self.rnn = kind(READ // share, hidden // share, batch_first=True, **options)  # type: ignore[arg-type]  # as its kinds take it
        directions = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(directions * (options.get("proj_size") or hidden // share), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(self.embed(x))[0][:, -1])
        return result


class Cells(nn.Module):
    """One step at a time; every cell reads the one before."""

    def __init__(self, share: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(6, 16 // share)
        self.gru = nn.GRUCell(16 // share, 12 // share)
        self.rnn = nn.RNNCell(12 // share, 8 // share, nonlinearity="relu", bias=False)
        self.head = nn.Linear(8 // share, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = second = third = None
        for step in range(STEPS):
            first = self.lstm(x[:, step], first)
            second = self.gru(first[0], second)
            third = self.rnn(second, third)
        result: Tensor = self.head(third)
        return result


GATES = {"lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[int], nn.Module]  # by the share of the width: 1 the full network, 2 half of it
    gates: int  # of `rnn`
    directions: int = 1

    def __str__(self) -> str:
        return self.name

    def full(self) -> nn.Module:
        return randomise(self.build(1)).eval()

    def thin(self, full: nn.Module) -> nn.Module:
        return copy_blocks(full, self.build(2).eval(), self.blocks)

    def blocks(self, name: str, dim: int) -> int:
        layer, _, tensor = name.partition(".")
        if dim == 0 and layer in ("rnn", "lstm", "gru") and "_hr_" not in tensor:
            return GATES.get(layer, self.gates)
        reads_directions = name == "head.weight" or tensor.startswith("weight_ih_l1")
        return self.directions if dim == 1 and reads_directions else 1


def classifier(kind: type[nn.RNNBase], hidden: int, **options: Any) -> Callable[[int], nn.Module]:
    return lambda share: Classifier(kind, hidden, share, **options)


CASES = (
    Case("lstm", classifier(nn.LSTM, 16), 4),
    Case("gru", classifier(nn.GRU, 12, num_layers=2, bidirectional=True, dropout=0.5), 3, 2),
    Case("lstm-projected", classifier(nn.LSTM, 16, num_layers=2, bidirectional=True, proj_size=4), 4, 2),
    Case("lstm-projected-no-bias", classifier(nn.LSTM, 16, proj_size=8, bias=False), 4),
    Case("rnn-tanh", classifier(nn.RNN, 12, num_layers=2, bias=False), 1),
    Case("rnn-relu", classifier(nn.RNN, 12, bidirectional=True, nonlinearity="relu"), 1, 2),
    Case("cells", Cells, 1),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def inputs(batch: int = 3) -> tuple[Tensor]:
    return (torch.randn(batch, STEPS, 6, generator=torch.Generator().manual_seed(2)),)


def by_hand(model: nn.Module) -> int:
    """Every weight matrix meets every step once; the classifier one of them."""
    matrices = {name: weight.numel() for name, weight in model.named_parameters() if weight.ndim == 2}
    last = matrices.pop("head.weight")
    return STEPS * sum(matrices.values()) + last


@every_case
@projections
def test_half_level_is_the_half_width_constructor(case: Case) -> None:
    full = case.full()
    net = transform(full, HALF, inputs())
    thin = case.thin(full)
    assert_exactly_thin(net, 0, thin, inputs(5))
    assert [level.cost.macs for level in net.levels] == [by_hand(thin), by_hand(full)]
    check(net, full, inputs())


@every_case
@projections
def test_order_by_l1_keeps_the_function(case: Case) -> None:
    full = case.full()
    before = full.state_dict()
    net = transform(full, NestedChannels((0.5, 1.0), order="l1"), inputs()).eval()
    torch.testing.assert_close(net(*inputs()).levels[-1], full(*inputs()))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items() if name in before)


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]], ids=str)
@projections
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")  # of torch.export, about its own tracing
def test_costs_are_those_of_the_unrolled_network(case: Case) -> None:
    """Core ATen has no recurrent layers: linear layers and gates, which other rules narrow and count."""
    full = case.full()
    exported = torch.export.export(full, inputs(), dynamic_shapes=({0: Dim.DYNAMIC},))
    with pytest.warns(AnytimeWarning, match="exported in eval mode"):
        unrolled = transform(exported.run_decompositions(), HALF)
    whole = transform(full, HALF, inputs())
    assert [level.cost.macs for level in unrolled.levels] == [level.cost.macs for level in whole.levels]
    torch.testing.assert_close(unrolled.eval()(*inputs()).levels, whole.eval()(*inputs()).levels)


def recurrent_calls(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.target is aten.gru.input]


def two_layers() -> AnytimeModel:
    case = CASES[1]
    return transform(case.full(), HALF, inputs())


def test_dropout_between_layers_follows_the_mode() -> None:
    net, (x,) = two_layers(), inputs()
    net.train()
    assert all(not torch.equal(a, b) for a, b in zip(net(x).levels, net(x).levels, strict=True))
    net.eval()
    assert all(torch.equal(a, b) for a, b in zip(net(x).levels, net(x).levels, strict=True))
    for level in (0, 1):
        small = net.extract(level).train()  # nothing in it depends on the mode any more
        assert not any(isinstance(module, TrainingSwitch) for module in small.modules())
        (call,) = recurrent_calls(small)
        assert bound(call)["train"] is False
        torch.testing.assert_close(small(x), net(x, level=level))


def test_joint_training_reaches_every_weight() -> None:
    net, (x,) = two_layers(), inputs()
    net.train()
    net.loss(net(x), torch.zeros(3, dtype=torch.int64)).backward()
    unreached = [
        name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert unreached == [
        "rnn.weight_hh_l1_reverse"
    ]  # of what reads backwards the first step counts, whose state is zero


def test_all_layers_and_directions_have_one_hidden_axis() -> None:
    case = CASES[1]
    axes = analyse(capture(case.full(), inputs()).program)
    hidden = [group for group in axes.narrowable if any("_hh_" in site.tensor for site in group.sites)]
    (group,) = hidden
    assert (group.size, group.quantum) == (12, 1)
    assert {site.tensor for site in group.sites if site.tensor.startswith("rnn.")} == {
        name for name, _ in case.full().named_parameters() if name.startswith("rnn.")
    }
    pins = [group for group in axes.groups if group.pin is not None and "gates" in group.pin.reason]
    assert [group.size for group in pins] == [3]


class Stepped(nn.Module):
    """Hidden units of a layer taken for the steps of a recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(6, 8), nn.GRU(1, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(self.embed(x).unsqueeze(-1))[1][0])
        return result


def test_steps_are_positions() -> None:
    axes = analyse(capture(Stepped(), (torch.randn(3, 6),)).program)
    assert [group.name for group in axes.narrowable] == ["rnn"]
    (steps,) = (group for group in axes.groups if group.name == "embed")
    assert steps.pin is not None
    assert steps.pin.reason == "steps of a recurrence"


class Stateful(Classifier):
    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        result: Tensor = self.head(self.rnn(self.embed(x), state)[0][:, -1])
        return result


def test_a_state_that_is_given_keeps_its_size() -> None:
    captured = capture(Stateful(nn.GRU, 16), (*inputs(), torch.randn(1, 3, 16)), dynamic_shapes={})
    axes = analyse(captured.program)
    assert [group.name for group in axes.narrowable] == ["embed"]
    hidden = [group for group in axes.groups if any("_hh_" in site.tensor for site in group.sites) and group.size == 16]
    assert {group.pin.kind for group in hidden if group.pin is not None} == {"input"}


@projections
def test_a_projection_as_wide_as_the_hidden_state_is_refused() -> None:
    model = Classifier(nn.LSTM, 16, proj_size=8)
    with pytest.raises(SchemeError, match=r"'rnn_lstm' .*16 hidden units to 8; at one of the widths both are 8"):
        transform(model, NestedChannels((0.5, 1.0), multiple_of=8), inputs())
    transform(model, NestedChannels((0.5, 1.0), multiple_of=4), inputs())


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_extracts_export(case: Case, tmp_path: Path) -> None:
    small = transform(case.full(), HALF, inputs()).extract(0)
    export_pt2(small, inputs(), tmp_path / "small.pt2")
    export_onnx(small, inputs(), tmp_path / "small.onnx")
    (x,) = inputs(5)
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), small(x).detach())
    torch.testing.assert_close(torch.export.load(tmp_path / "small.pt2").module()(x), small(x))


def test_the_backbone_is_untouched() -> None:
    model = CASES[1].full()
    weights = list(model.rnn.parameters())  # type: ignore[union-attr]
    transform(model, HALF, inputs())
    assert all(a is b for a, b in zip(model.rnn._flat_weights, weights, strict=True))  # type: ignore[union-attr, arg-type]


def test_a_group_has_the_name_of_its_layer() -> None:
    net = transform(classifier(nn.LSTM, 16)(1), NestedChannels(widths=(0.5, 1.0), where="rnn"), inputs())
    assert "rnn" in {group.name for group in net.axes.narrowable}
    assert net.levels[0].cost < net.levels[1].cost


def test_a_recurrent_layer_may_be_the_head() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Linear(6, 8), nn.GRU(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.rnn(self.embed(x))[0]
            return result

    net = transform(Ends(), HALF, inputs())
    assert not any(name.startswith("anytime.0.embed") for name, _ in net.named_parameters())
    assert any(name.startswith("anytime.0.rnn") for name, _ in net.named_parameters())
