"""Programs that are compared with their models without computing anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify.capture import compare
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.pipeline import capture
from anytimeify.capture.traced import Numbering
from tests.backbones import Residual, images


def numbers(model: nn.Module | Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    x = torch.randn(2, 6)
    numbering = Numbering([x, *(model.parameters() if isinstance(model, nn.Module) else ())])
    return numbering.of(lambda: model(x))[1][0], numbering.of(lambda: other(x))[1][0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: F.relu_(x * 2), lambda x: (x * 2).relu()),
        (lambda x: x.clone().view(3, 4).unsqueeze(0), lambda x: x.reshape(1, 3, 4)),
        (lambda x: x.t().contiguous().view(2, 3, 2), lambda x: x.transpose(0, 1).reshape(2, 3, 2)),
        (lambda x: F.pad(x, (0, 0)).expand(2, -1)[:, :6] + 1, lambda x: x + 1),
        (lambda x: x + torch.full((6,), 2.0), lambda x: x + torch.full((6,), 2.0)),
        (lambda x: x.topk(2).values, lambda x: x.topk(2)[0]),
    ],
)
def test_what_computes_the_same_has_one_number(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]
) -> None:
    assert len(set(numbers(one, other))) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1, lambda x: x + 1.5),
        (lambda x: x + 1, lambda x: x + True),
        (lambda x: x - x.t().t(), lambda x: x - x.flip(0)),
        (lambda x: x.view(3, 4), lambda x: x.view(4, 3)),
        (lambda x: x.t().reshape(2, 6), lambda x: x),
        (lambda x: x * torch.tensor([1.0] * 6), lambda x: x * torch.tensor([1.0] * 5 + [2.0])),
        (lambda x: x.topk(2).values, lambda x: x.topk(2).indices),
        (lambda x: x.to(torch.float64), lambda x: x),
    ],
)
def test_what_computes_something_else_has_another(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]
) -> None:
    assert len(set(numbers(one, other))) == 2


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].zero_()
    return y + 1


def written_to_a_base(x: Tensor) -> Tensor:
    y = x * 2
    part = y[:, :3]
    y.relu_()
    return part + 1


@pytest.mark.parametrize(
    "undecided",
    [
        written_through_a_view,
        written_to_a_base,
        lambda x: F.dropout(x, 0.5),
        lambda x: x + torch.rand_like(x),
        lambda x: x.relu_(),
        lambda x: x if float(x.sum()) > 0 else -x,
        lambda x: x[x > 0],
    ],
)
def test_what_takes_values_to_tell_gives_no_number(undecided: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 6)
    before = x.clone()
    with pytest.raises(Exception, match=r".*"):  # whatever stops it
        Numbering([x]).of(lambda: undecided(x))
    assert torch.equal(x, before)


def traced(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed with values when a model is captured and traced."""
    computed: list[str] = []
    for name in ("expected_from_module", "results_of_program"):
        found = getattr(compare, name)

        def called(*args: object, name: str = name, found: Callable[..., object] = found, **kwargs: object) -> object:
            computed.append(name)
            return found(*args, **kwargs)

        monkeypatch.setattr(compare, name, called)
    monkeypatch.setattr("anytimeify.capture.both_modes.takes_long", lambda *_: True)
    capture(model, (x,), traced=True)
    return computed


def test_a_network_is_captured_without_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert traced(model, images(), monkeypatch) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Remembers(nn.Module):
    """Computes something else in Python when it is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(6, 6), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x) * self.calls if not self.training else self.fc(x) + 1  # type: ignore[no-any-return]  # a tensor


def test_what_differs_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert traced(Remembers(), torch.randn(2, 6), monkeypatch)


def forms(values: list[Tensor]) -> list[object]:
    return [(one.shape, one.stride(), one.dtype) for one in values]


def test_results_have_the_form_that_they_had_before() -> None:
    """The form of an operation's result is found once for operands of one form; views are made every time."""

    def run(x: Tensor, y: Tensor) -> list[Tensor]:
        joined = x.relu() + y
        part = joined[:, 1:]
        pair = joined.topk(2, dim=1)
        return [
            x.relu(),
            joined,
            part,
            part.contiguous(),
            (x * 2).add_(1),
            *pair,
            x.sum(),
            x + 1,
            x + 1.5,
            x.to(y.dtype),
        ]

    kinds = (torch.contiguous_format, torch.channels_last)
    tensors = [torch.randn(2, 3, 4, 4).to(memory_format=kind) for kind in kinds]
    pairs = [(x, y.to(dtype)) for x in tensors for y in tensors for dtype in (torch.float32, torch.float64)]
    numbering = Numbering([])
    for x, y in pairs * 2:
        found, _ = numbering.of(lambda: run(x, y))  # noqa: B023  # called at once
        assert forms(found) == forms(run(x, y))
        assert found[2].untyped_storage()._cdata == found[1].untyped_storage()._cdata
        assert found[3].untyped_storage()._cdata != found[1].untyped_storage()._cdata


def test_a_trace_leaves_nothing_behind() -> None:
    class Caching(nn.Module):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(6.0)
            return x * self.table

    model, x = Caching(), torch.randn(2, 6)
    found = compare.traced_from_module(model, CallInputs((x,), {}), None)
    assert found.traced is not None
    assert found.prediction.is_meta
    assert model.table is None
    torch.testing.assert_close(found.computed.prediction, model(x))
