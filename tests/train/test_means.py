"""By what means `fit` trains, and what each should equal: a joint batch, the eager network, the contiguous layout."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, NestedChannels, transform
from anytimeify.errors import AnytimeError
from anytimeify.train import Data, Held, OneAfterTheOther, Optimiser, Order, Sandwich, Schedule, Together, Training, fit
from tests.train.residual import Residual

pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")
pytestmark = [
    # torchmetrics, about packages that it imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TRAINING = Training(
    data="stripes",
    optimiser=Optimiser(learning_rate=0.05, weight_decay=1e-4),
    schedule=Schedule(kind="steps"),
    batch=16,
    epochs=1,
)


@pytest.fixture(scope="module")
def made() -> AnytimeModel:
    torch.manual_seed(0)
    return transform(Residual(), NestedChannels((0.25, 0.5, 1.0)), torch.randn(2, 3, 8, 8), verify=False)


@pytest.fixture(scope="module")
def stripes() -> Data:
    """Noise, on it stripes of one of four periods."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(96) % 4
    waves = torch.sin(torch.arange(8.0)[None] * (labels[:, None] + 1) * 0.7)
    held = Held(torch.randn(96, 3, 8, 8, generator=generator) * 0.3 + waves[:, None, None], labels)
    return Data("stripes", held, held, tuple("abcd"))


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def trained(net: AnytimeModel, data: Data, training: Training, steps: int | None = None) -> dict[str, Tensor]:
    own = copy.deepcopy(net)
    fit(own, data, training, limit_batches=steps)
    return weights(own)


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [Together(), OneAfterTheOther(), Sandwich(random=1)], ids=str)
def test_two_halves_are_the_joint_batch(made: AnytimeModel, stripes: Data, order: Order) -> None:
    training = replace(TRAINING, order=order, clip=0.5, frozen_norms=True)  # statistics would be those of a half
    joint = trained(made, stripes, training)
    assert_alike(joint, trained(made, stripes, replace(training, accumulate=2)))


def test_the_gradient_is_clipped(made: AnytimeModel, stripes: Data) -> None:
    optimiser = Optimiser(learning_rate=1.0, weight_decay=0.0, momentum=0.0)  # so that a step is the gradient
    training = replace(TRAINING, optimiser=optimiser)
    steps = {}
    for clip in (None, 0.1, 1e3):
        after = trained(made, stripes, replace(training, clip=clip), 1)
        moved = [after[name] - before.detach() for name, before in made.named_parameters()]
        steps[clip] = torch.cat([one.flatten() for one in moved])
    whole = steps[None].norm()
    assert whole > 0.2
    torch.testing.assert_close(steps[1e3], steps[None])
    torch.testing.assert_close(steps[0.1], steps[None] * 0.1 / whole, rtol=1e-4, atol=1e-6)


def test_the_average_of_weights_is_kept(made: AnytimeModel, stripes: Data) -> None:
    """After each of two steps what there is counts `ema`, but no more than 2/11 and 3/12."""
    first, second = (trained(made, stripes, TRAINING, steps) for steps in (1, 2))
    for ema, shares in ((0.1, (0.1, 0.1)), (0.99, (2 / 11, 3 / 12))):
        found = trained(made, stripes, replace(TRAINING, ema=ema, calibrate=0), 2)
        for name, start in made.state_dict().items():
            if start.is_floating_point():
                once = shares[0] * start + (1 - shares[0]) * first[name]
                expected = shares[1] * once + (1 - shares[1]) * second[name]
                torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


def test_channels_last_is_a_layout(made: AnytimeModel, stripes: Data) -> None:
    own = copy.deepcopy(made)
    fit(own, stripes, replace(TRAINING, channels_last=True))
    assert own.get_parameter("blocks.0.conv.weight").is_contiguous(memory_format=torch.channels_last)
    assert_alike(trained(made, stripes, TRAINING), weights(own))


def test_lower_precision_learns_and_keeps_whole_weights(made: AnytimeModel, stripes: Data) -> None:
    training = replace(TRAINING, epochs=8, clip=1.0, ema=0.5, accumulate=2)
    own = copy.deepcopy(made)
    run = fit(own, stripes, replace(training, precision="bf16"))
    assert {tensor.dtype for tensor in own.state_dict().values()} == {torch.float32, torch.int64}
    assert run.history[-1]["loss"] < 0.5 * run.history[0]["loss"]
    assert run.accuracy["width 1"] > 0.9
    exact = fit(copy.deepcopy(made), stripes, replace(training, epochs=1))
    assert run.history[0]["loss"] != exact.history[0]["loss"]
    assert run.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.02)


def test_one_process_has_nothing_to_spread(made: AnytimeModel, stripes: Data) -> None:
    """A recipe for several processes trains in one too."""
    whole, spread = (trained(made, stripes, replace(TRAINING, shard=shard), 1) for shard in (False, True))
    assert_alike(whole, spread)


def test_half_precision_is_for_gpus(made: AnytimeModel, stripes: Data) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(AnytimeError, match="precision='fp16' is for GPUs: take 'bf16' on a CPU"):
        fit(made, stripes, replace(TRAINING, precision="fp16"))


@pytest.mark.slow
@pytest.mark.parametrize("order", [Together(), Sandwich(random=1)], ids=str)
def test_a_compiled_step_is_the_eager_one(made: AnytimeModel, stripes: Data, order: Order) -> None:
    training = replace(TRAINING, order=order)
    assert_alike(trained(made, stripes, training), trained(made, stripes, replace(training, compile=True)))


@pytest.mark.slow
def test_all_of_it_at_once(made: AnytimeModel, stripes: Data) -> None:
    training = replace(TRAINING, epochs=8, precision="bf16", compile=True, channels_last=True, accumulate=2, clip=1.0)
    run = fit(copy.deepcopy(made), stripes, replace(training, ema=0.5))
    assert run.accuracy["width 1"] > 0.9
