"""The size of a batch: dynamic, or made so from two exports, or fixed and checked at every call."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anytimeify
import anytimeify.staged
from anytimeify import AnytimeWarning, AuxiliaryBranches, Branch, Budget, Confidence, NestedChannels, transform
from anytimeify.capture.pipeline import capture
from anytimeify.capture.side_by_side import side_by_side
from anytimeify.errors import ArgumentError, BudgetError
from anytimeify.ir import Captured
from tests.capture.helpers import text

SCHEME = NestedChannels((0.5, 1.0))


class Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.between(self.hidden(x).relu()))
        return result

    def between(self, x: Tensor) -> Tensor:
        return x


class NumberOfSamples(Vectors):
    """A size made a number, in the place of one; the batch of the example equals the channels."""

    def between(self, x: Tensor) -> Tensor:
        return x.view(int(x.shape[0]), 2, 4).transpose(1, 2).reshape(int(x.shape[0]), 8)


class Squared(Vectors):
    """Similarities of the samples of a batch: both dimensions are the batch."""

    def between(self, x: Tensor) -> Tensor:
        count = int(x.shape[0])
        flat = (x @ x.t()).reshape(count * count)
        return torch.softmax(flat.reshape(count, count), 1) @ x


class CountedUp(Vectors):
    def between(self, x: Tensor) -> Tensor:
        count = int(x.shape[0])
        return x + torch.arange(count).flip(0)[:, None] * torch.ones(count, 8)


class LessOne(Vectors):
    """Differences of neighbours, and the first once more: a size of one less than the batch."""

    def between(self, x: Tensor) -> Tensor:
        count = int(x.shape[0])
        return torch.cat([x[:1], x[1:] - x[: count - 1]]) + x.new_zeros(count - 1, 8).sum(0)


class BatchInGroups(nn.Module):
    """A filter for each sample, as groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8 * 27))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        count = int(x.shape[0])
        weight = self.filters(x.mean((2, 3))).reshape(count * 8, 3, 3, 3)
        y = nn.functional.conv2d(x.reshape(1, count * 3, *x.shape[2:]), weight, groups=count)
        result: Tensor = self.head(y.reshape(count, 8, *y.shape[2:]).mean((2, 3)))
        return result


class Windows(nn.Module):
    """Batch times windows, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inside = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).view(int(x.shape[0]), 8, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
        x = self.inside(x).relu()
        result: Tensor = self.head(x.view(int(x.shape[0] / 4), 64, 8).mean(1))
        return result


class TableOfTheBatch(Vectors):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 8))

    def between(self, x: Tensor) -> Tensor:
        return x + self.table


class Twos(Vectors):
    def between(self, x: Tensor) -> Tensor:
        return x.view(2, -1)


class Share(Vectors):
    def between(self, x: Tensor) -> Tensor:
        return x * (1 / int(x.shape[0]))


class Third(Vectors):
    """A number that is the same for two samples and for three, and another one for five."""

    def between(self, x: Tensor) -> Tensor:
        return x * (1 + int(x.shape[0]) // 4)


class Large(Vectors):
    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 2 else x


class Alone(Vectors):
    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x


class Distances(Vectors):
    """What torch computes in another way from 26 rows on, in one operation."""

    def between(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x) @ x


class Remembers(Vectors):
    """A table for the last shape, as detectors keep anchors."""

    shape: torch.Size | None = None

    def between(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.shape, self.table = x.shape, torch.arange(8.0).expand(x.shape)
        return x + self.table


class Even(Vectors):
    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] % 2 else x


X = torch.randn(8, 6)
IMAGES = torch.randn(2, 3, 8, 8)


def limited(model: nn.Module, x: Tensor) -> tuple[anytimeify.AnytimeModel, str]:
    """The result in eval mode, and the warning."""
    with pytest.warns(AnytimeWarning, match="the result takes only") as told:
        net = transform(model.eval(), SCHEME, x)
    return net, str(told[0].message)


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        (NumberOfSamples, X),
        (NumberOfSamples, X[:2]),
        (NumberOfSamples, X[:1]),
        (Squared, X[:3]),
        (CountedUp, X[:2]),
        (LessOne, X[:2]),
        (BatchInGroups, IMAGES),
        (Windows, IMAGES),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_a_fixed_batch_is_made_dynamic(kind: type[nn.Module], example: Tensor, training: bool) -> None:
    model = kind().train(training)
    net = transform(model, SCHEME, example, verify=training).eval()
    assert net.captured.batch is not None
    assert net.captured.batch_range == (1, None)
    assert any("made dynamic from exports for" in note for note in net.captured.notes)
    model.eval()
    for count in (1, 3, 4, 7):
        x = torch.randn(count, *example.shape[1:])
        torch.testing.assert_close(net(x, level=-1), model(x))
        torch.testing.assert_close(net.extract(0)(x), net(x, level=0))


class Auxiliary(NumberOfSamples):
    """In training the prediction is the second of two results."""

    def forward(self, x: Tensor) -> Any:
        result = super().forward(x)
        return (self.hidden(x), result) if self.training else result


def test_a_prediction_is_found_where_the_batch_is_made_dynamic() -> None:
    captured = capture(Auxiliary(), X[:4])
    assert captured.batch is not None
    assert captured.lost == ()
    assert any("made dynamic" in note for note in captured.notes)


class OneForEach(Vectors):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).unbind(0)


def test_results_that_are_as_many_as_samples() -> None:
    captured = capture(OneForEach(), X[:4])
    assert captured.batch is None
    assert captured.limit is not None
    assert captured.limit.startswith("batches of 4")


def test_numbers_become_functions_of_the_batch() -> None:
    assert "reshape_1 = reshape(transpose, [sym_size, 8])" in text(capture(NumberOfSamples(), X).program)
    assert "mul = mul(sym_size, 8)" in text(capture(BatchInGroups(), IMAGES).program)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TableOfTheBatch, "makes a plain number"),
        (Twos, "makes a plain number"),
        (Share, "is given 0.333"),
        (Third, "differs from the model in eval mode"),
    ],
)
def test_else_it_stays_as_it_is_and_every_call_is_checked(kind: type[Vectors], reason: str) -> None:
    model = kind()
    net, told = limited(model, X[:2])
    assert told.startswith("the result takes only batches of 2, the size in the example")
    assert reason in told
    assert told.removeprefix("the result ") in " ".join(str(net.report()).split())
    torch.testing.assert_close(net(X[2:4], level=-1), model(X[2:4]))
    with pytest.raises(ArgumentError, match="a batch of 4 was given, but the graph holds for batches of 2"):
        net(X[:4])
    with pytest.raises(AssertionError, match="the graph holds for batches of 2"):
        net.extract(0)(X[:4])


def test_batches_that_take_another_way_are_refused(tmp_path: Path) -> None:
    model = Large()
    net, told = limited(model, X[:4])
    assert "batches of 3 or more" in told
    torch.testing.assert_close(net(X[:3], level=-1), model(X[:3]))
    net.save(tmp_path / "net.safetensors")
    for one in (net, anytimeify.load(tmp_path / "net.safetensors")):
        with pytest.raises(ArgumentError, match="a batch of 2 was given"):
            one(X[:2])
    small = net.extract(0)
    exported = torch.export.export(small, (X[:4],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.testing.assert_close(exported.module()(X), small(X))
    stream = io.BytesIO()
    torch.save(small, stream)
    stream.seek(0)
    with pytest.raises(AssertionError, match="batches of 3 or more"):
        torch.load(stream, weights_only=False)(X[:2])
    assert net.select(Budget(latency_ms=1e6)).name == "width 1"
    with pytest.raises(BudgetError, match="batch_size=2: the graph holds for batches of 3 or more"):
        net.select(Budget(latency_ms=1e6, batch_size=2))


@pytest.mark.parametrize("kinds", [(Large, Vectors), (Vectors, Large)])
def test_two_networks_take_what_both_take(kinds: tuple[type[Vectors], type[Vectors]]) -> None:
    both = side_by_side(*(capture(kind(), X[:4]) for kind in kinds))
    assert both.batch_range == (3, None)
    assert both.limit is not None
    assert both.limit.startswith("batches of 3 or more")


class Exits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.second(x * 2 if x.shape[0] > 2 else x).relu()
        result: Tensor = self.head(x)
        return result


def test_stages_are_checked_and_keep_their_batch(tmp_path: Path) -> None:
    model = Exits().eval()
    with pytest.warns(AnytimeWarning, match="batches of 3 or more"):
        net = transform(model, AuxiliaryBranches((Branch("first", head="pool"),)), X[:4])
    staged = net.staged()
    staged.export(tmp_path / "stages")
    for one in (staged, anytimeify.staged.load(tmp_path / "stages")):
        assert not one.chain.separable  # a stage would be left with too few samples
        torch.testing.assert_close(one(X[:3], policy=Confidence(0.99)).prediction, model(X[:3]))
        for call in (one, lambda x, one=one: list(one.stream(x))):
            with pytest.raises(ArgumentError, match="a batch of 2 was given"):
                call(X[:2])


def test_ranges_that_were_given_are_kept() -> None:
    net = transform(Vectors(), SCHEME, X[:4], dynamic_shapes=({0: torch.export.Dim("n", min=3, max=5)},))
    assert net.captured.limit is None
    assert net(X[:5], level=0).shape == (5, 3)
    with pytest.raises(ArgumentError, match="holds for batches of 3 to 5"):
        net(X[:6])
    exported = torch.export.export(Vectors(), (X[:4],), dynamic_shapes=({0: torch.export.Dim("n", max=5)},))
    with pytest.warns(AnytimeWarning, match="exported in eval mode"):
        net = transform(exported, SCHEME)
    assert "takes batches of 1 to 5, as the exported program does" in net.report().notes
    assert net(X[:1], level=0).shape == (1, 3)


def test_a_single_sample_that_takes_another_way_is_refused() -> None:
    net, told = limited(Alone(), X)
    assert "batches of 2 or more" in told
    with pytest.raises(ArgumentError, match="a batch of 1 was given"):
        net(X[:1])


def test_a_range_of_an_operation_is_none_of_the_model() -> None:
    captured = capture(Distances(), X)
    assert captured.batch_range == (1, None)
    assert captured.limit is None


def test_what_ran_before_is_no_limit() -> None:
    model = Remembers().eval()
    model(X)
    net = transform(model, SCHEME, X)
    assert model.shape == (8, 8)
    for count in (1, 3, 8):
        torch.testing.assert_close(net(X[:count], level=-1), model(X[:count]))


def test_a_condition_that_is_no_range() -> None:
    net, told = limited(Even(), X[:4])
    assert "forward() decides something by the size of its batch" in told
    assert net.captured.batch is None


def test_sizes_that_were_given_are_kept_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured: Captured = transform(Large(), SCHEME, X, dynamic_shapes={}).captured
    assert captured.batch is None


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x.view(2, -1)


@pytest.mark.parametrize("kind", [Decides, TableOfTheBatch, Vectors])
def test_no_mark_stays_on_the_users_tensors(kind: type[nn.Module]) -> None:
    x = X[:2].clone()
    before = dict(vars(x))
    with contextlib.suppress(anytimeify.CaptureError):
        capture(kind(), x)
    assert vars(x) == before
    torch.export.export(Twos(), (x,))
