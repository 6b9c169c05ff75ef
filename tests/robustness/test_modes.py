"""Backbones that are one network in train mode and another in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeWarning, CaptureError, transform
from anytimeify._torch import prepare_torchvision
from tests.robustness.helpers import SCHEME, check, quietly

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class TwoStructures(nn.Module):
    """`make(training, hidden, result)` says what it returns."""

    def __init__(self, make: Callable[[bool, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.drop, self.head, self.make = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3), make

    def forward(self, x: Tensor) -> Any:
        hidden = self.drop(self.body(x).relu())
        return self.make(self.training, hidden, self.head(hidden))


def first_aux(training: bool, hidden: Tensor, result: Tensor) -> Any:
    return (hidden.mean(1, keepdim=True), result) if training else result


def dict_aux(training: bool, hidden: Tensor, result: Tensor) -> Any:
    return {"aux": result * 2, "out": result} if training else result


def more_in_eval(training: bool, hidden: Tensor, result: Tensor) -> Any:
    return result if training else (hidden, result)


def nested_in_eval(training: bool, hidden: Tensor, result: Tensor) -> Any:
    return [hidden, result] if training else {"states": [hidden], "logits": result}


@pytest.mark.parametrize(
    ("make", "output", "find"),
    [
        (first_aux, None, lambda result: result),
        (dict_aux, None, lambda result: result),
        (more_in_eval, 1, lambda result: result[1]),
        (nested_in_eval, None, lambda result: result["logits"]),
    ],
)
def test_the_prediction_is_that_of_eval_mode(make: Any, output: Any, find: Callable[[Any], Tensor]) -> None:
    """Found among what train mode returns by its numbers, so that the dropout of training is kept."""
    net = check(TwoStructures(make), X, prediction=find, output=output)
    assert isinstance(net.get_submodule("drop"), nn.Dropout)


def test_output_names_what_eval_mode_returns() -> None:
    with pytest.raises(CaptureError, match=r"output='aux': the model returns one value, which has no 'aux'"):
        transform(TwoStructures(dict_aux), SCHEME, X, output="aux")


def test_results_that_train_mode_cannot_tell_apart_are_captured_in_eval_mode() -> None:
    model = TwoStructures(dict_aux)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)  # as some zoos start their heads: result and auxiliary result are both zero
    with pytest.warns(AnytimeWarning, match="what train mode returns does not tell"):
        net = transform(model, SCHEME, X)
    assert any("what train mode returns does not tell" in note for note in net.captured.notes)
    nn.init.normal_(net.get_parameter("head.weight"))
    model.load_state_dict(net.state_dict(), strict=False)
    torch.testing.assert_close(net.eval()(X, level=-1), model.eval()(X))


class OnlyInEval(nn.Module):
    """Normalises its prediction for users."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x).relu())
        return result if self.training else result.softmax(-1)


def test_what_only_eval_mode_computes_is_kept() -> None:
    check(OnlyInEval(), X)


class NoiseOfTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.training:
            hidden = hidden + torch.randn_like(hidden)
        result: Tensor = self.head(hidden.relu())
        return result


def test_noise_of_training_is_kept() -> None:
    net = check(NoiseOfTraining(), X).train()
    assert not torch.equal(net(X, level=0), net(X, level=0))
    assert torch.equal(net.eval()(X, level=0), net(X, level=0))


class Reparameterised(nn.Module):
    """Branches in training, one convolution after `fuse`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.narrow: nn.Module | None = nn.Conv2d(8, 8, 1)
        self.norm: nn.Module | None = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.wide(x)
        if self.narrow is not None and self.norm is not None:
            y = y + self.narrow(x) + self.norm(x)
        result: Tensor = self.head(y.relu().mean((2, 3)))
        return result

    def fuse(self) -> Reparameterised:
        assert isinstance(self.narrow, nn.Conv2d)
        assert isinstance(self.norm, nn.BatchNorm2d)
        mean, var = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        with torch.no_grad():
            scale = self.norm.weight / (var + self.norm.eps).sqrt()
            self.wide.weight[:, :, 1, 1] += self.narrow.weight[:, :, 0, 0] + torch.diag(scale)
            self.wide.get_parameter("bias").add_(self.narrow.get_parameter("bias") + self.norm.bias - mean * scale)
        self.narrow = self.norm = None
        return self


@pytest.mark.parametrize("training", [True, False])
def test_blocks_before_and_after_they_are_fused(training: bool) -> None:
    model, images = Reparameterised().train(training), IMAGES[:, :, :6, :6]
    net = check(model, images)
    fused = check(model.eval().fuse(), images)
    torch.testing.assert_close(fused(images, level=-1), net(images, level=-1), rtol=1e-4, atol=1e-5)


def torchvision(name: str, **options: Any) -> nn.Module:
    prepare_torchvision()
    from torchvision import models

    return quietly(lambda: models.get_model(name, weights=None, **options))


@pytest.mark.zoo
@pytest.mark.parametrize("training", [True, False])
def test_googlenet_with_auxiliary_classifiers(training: bool) -> None:
    model = torchvision("googlenet", aux_logits=True, init_weights=False).train(training)
    net = transform(model, SCHEME, IMAGES)
    assert not [note for note in net.captured.notes if "lost" in note]
    model.eval()
    torch.testing.assert_close(net.eval()(IMAGES, level=-1), model(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.zoo
@pytest.mark.parametrize("output", [None, "out", "aux"])
def test_segmentation_with_an_auxiliary_classifier(output: str | None) -> None:
    model = torchvision("fcn_resnet50", weights_backbone=None, aux_loss=True)
    net = transform(model, SCHEME, IMAGES[:, :, :48, :48], output=output)
    assert not [note for note in net.captured.notes if "lost" in note]


@pytest.mark.zoo
@pytest.mark.parametrize("size", [75, 299])
def test_inception_whose_auxiliary_classifier_needs_a_large_image(size: int, capfd: pytest.CaptureFixture[str]) -> None:
    net = transform(torchvision("inception_v3", init_weights=False), SCHEME, torch.randn(2, 3, size, size))
    lost = [note for note in net.captured.notes if "lost" in note]
    assert bool(lost) == (size == 75)
    assert capfd.readouterr().err == ""  # of what the exporter says on its way


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "repghostnet_050", "fastvit_t8"])
def test_reparameterised_backbones_of_timm(name: str) -> None:
    prepare_torchvision()
    import timm
    from timm import utils

    model = quietly(lambda: timm.create_model(name)).eval()
    reparameterize: Callable[[nn.Module], nn.Module] = getattr(utils, "reparameterize_model")  # noqa: B009  # not exported
    for form in (model, reparameterize(model)):
        net = transform(form, SCHEME, IMAGES)
        assert net.levels[0].cost.macs < net.levels[-1].cost.macs / 2
