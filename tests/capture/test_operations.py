"""What capture knows of operations by the tables in `anytimeify.rules`, on calls that each of them is asked about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from anytimeify.capture import capture
from anytimeify.capture.training_form import trains
from anytimeify.contract import spec
from anytimeify.ir import Origin, Program, Size, TensorType
from anytimeify.rules import spellings
from anytimeify.rules.training import draws, training_flag
from anytimeify.storage.graphs import decode_program, encode_program
from tests.building import run
from tests.capture.helpers import check, text

aten = torch.ops.aten
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    """A convolution, and one function behind it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x), self.training)


UNCHANGED: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "alias": lambda x, _: aten.alias.default(x),
    "broadcast_to": lambda x, _: x.broadcast_to(x.shape),
    "clone": lambda x, _: x.clone(),
    "contiguous": lambda x, _: x.contiguous(),
    "conversion": lambda x, _: x.to(torch.float32),
    "expand_as": lambda x, _: x.expand_as(x),
    "pad": lambda x, _: functional.pad(x, (0, 0, 0, 0)),
    "permute": lambda x, _: x.permute(0, 1, 2, -1),
    "slice": lambda x, _: x[:, 0:],
    "squeeze": lambda x, _: x.squeeze((1, 2)),
    "type_as": lambda x, _: x.type_as(x),
    "unflatten": lambda x, _: x.unflatten(1, (-1,)),
    "view": lambda x, _: x.view(x.shape),
    "dropout of nothing": lambda x, training: functional.dropout(x, 0.0, training),
    "dropout in place": lambda x, _: functional.dropout(x, 0.5, False, inplace=True),
    "dropout of channels in place": lambda x, _: functional.dropout2d(x, 0.5, False, inplace=True),
    "alpha dropout in place": lambda x, _: functional.feature_alpha_dropout(x, 0.5, False, inplace=True),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_changes_nothing_is_gone(name: str) -> None:
    program = check(Calls(UNCHANGED[name]), X).program
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [aten.conv2d.default]


def test_a_mask_that_is_read_stays() -> None:
    def masked(x: Tensor, training: bool) -> Tensor:
        kept, mask = torch.native_dropout(x, 0.0, True)
        return kept * mask

    assert "native_dropout" in text(check(Calls(masked), X).program)


def test_padding_by_nothing_is_a_copy() -> None:
    def written(x: Tensor, training: bool) -> Tensor:
        padded = functional.pad(x, (0, 0, 0, 0))
        padded.add_(1)
        return padded * x

    assert text(check(Calls(written), X).program).splitlines()[-2] == "mul = mul(add, conv)"


def test_a_view_that_copies_is_not_written_through() -> None:
    def written(x: Tensor, training: bool) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)
        rows.zero_()
        return rows.sum() + x

    check(Calls(written), X)


def test_windows_are_constants() -> None:
    program = check(Calls(lambda x, _: x * torch.hann_window(6)), X).program
    (name,) = program.transient
    assert torch.equal(program.tensors[name], torch.hann_window(6))
    assert aten.hann_window.default not in {node.target for node in program.graph.nodes}


def test_masks_drawn_in_place_with_probabilities_that_are_computed() -> None:
    def mask(x: Tensor, training: bool) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(x.sigmoid())

    captured = capture(Calls(mask), X, check=False)
    drawn = next(node for node in captured.program.graph.nodes if node.target is aten.bernoulli.Tensor)
    assert isinstance(drawn.args[1], fx.Node)
    assert drawn.args[1].target is aten.sigmoid.default


@pytest.mark.parametrize("name", ["nearest-exact", "softmax"])
def test_private_operations_that_have_a_rule_are_saved(name: str) -> None:
    functions: dict[str, Callable[[Tensor, bool], Tensor]] = {
        "nearest-exact": lambda x, _: aten._upsample_nearest_exact2d.default(x, [12, 12]),
        "softmax": lambda x, _: aten._softmax.default(x, 1, False),
    }
    program = check(Calls(functions[name]), X).program
    again = decode_program(encode_program(program), program.tensors)
    assert text(again) == text(program)
    assert torch.equal(*(run(one, X)[0] for one in (program, again)))


class Recorded(nn.Module):
    """Nothing but statistics says whether it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(4, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * 2  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [Recorded, lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5, inplace=True))])
def test_the_mode_of_an_export(build: Callable[[], nn.Module], training: bool) -> None:
    assert trains(torch.export.export(build().train(training), (X,), strict=False)) is training


@pytest.mark.parametrize(
    ("target", "flag"),
    [
        (aten.dropout_.default, "train"),
        (aten.native_dropout.default, "train"),
        (aten.instance_norm.default, "use_input_stats"),
        (aten.rrelu_with_noise.default, "training"),
        (aten.relu.default, None),
        ("x", None),
    ],
)
def test_training_flags(target: object, flag: str | None) -> None:
    assert training_flag(target) == flag


@pytest.mark.parametrize(
    ("target", "args", "random"),
    [
        (aten.dropout.default, (0.5, True), True),
        (aten.dropout.default, (0.5, False), False),
        (aten.rand_like.default, (), True),
        (aten.relu.default, (), False),
    ],
)
def test_calls_that_draw(target: Any, args: tuple[Any, ...], random: bool) -> None:
    graph = fx.Graph()
    assert draws(graph.call_function(target, (graph.placeholder("x"), *args))) is random


@pytest.mark.parametrize("target", [aten.view.default, aten.alias.default, aten._assert_async.default], ids=str)
def test_canonical_graphs_have_one_spelling(target: Any) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(target, (x, [24]) if target is aten.view.default else (x,))
    graph.output((node,))
    for one in (x, node):
        one.meta = {"type": TensorType((Size(24),), torch.float32), "origin": Origin()}
    with pytest.raises(spec.SpecError, match="bookkeeping"):
        spec.verify(Program(graph, {}, frozenset()))


def test_a_new_spelling_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**spellings._RENAMED, aten.multiply.Tensor: aten.mul.Tensor}
    before, after = (Calls(lambda x, _: aten.multiply.Tensor(x, x)) for _ in range(2))
    assert "multiply(" in text(check(before, X).program)
    monkeypatch.setattr(spellings, "_RENAMED", other)
    assert "= mul(" in text(check(after, X).program)
    assert spellings.is_noncanonical(aten.multiply.Tensor)
