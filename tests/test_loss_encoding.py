"""Objectives come back from a file as they were: their options, what they are made of, and what they have learned."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeWarning, ArtifactError, JointLoss, Outputs, Taxonomy, load, losses
from anytimeify.storage.losses import KINDS, decode_loss, encode_loss
from tests.backbones import images, residual_net
from tests.passes.every_scheme import net_of

# One of every kind, with every option at another value than its default.
TAXONOMY = Taxonomy.from_parents([0, 0, 1, 1, 1])
EVERY: list[nn.Module] = [
    losses.JointLoss((0.5, 1.0, 2.0), "mean"),
    losses.InPlaceDistillation(3.0),
    losses.IndependentLoss("sum"),
    losses.HierarchicalLoss(0.25, ensembles="levels", reduction="sum"),
    losses.CoDistillation(0.25, 3.0, "sum", softened="teacher", detach=False, include_self=False),
    losses.HierarchicalCoDistillation(
        0.25, 3.0, "sum", softened="teacher", detach=False, full_ensemble=True, ensembles="levels"
    ),
    losses.HierarchicalMimicking(0.5, 2.0, "bernoulli", 0.25, "step"),
    losses.CrossLayerMutual(0.5, 0.25, 0.125, temperature=2.0, heads="last"),
    losses.ConsensusLoss(losses.InPlaceDistillation(3.0), 0.5),
    losses.TaxonomyLoss(losses.JointLoss(reduction="mean"), TAXONOMY, (1.0, 0.5)),
    losses.TaxonomyLoss({"fine": losses.JointLoss(), "coarse": losses.InPlaceDistillation(2.0)}, TAXONOMY),
]


def state(loss: nn.Module) -> dict[str, Any]:
    """Everything that an objective was given: its plain attributes, and those of what it is made of."""
    ours = [module for module in loss.modules() if isinstance(module, losses.Objective)]
    return {
        f"{index} {type(module).__name__} {name}": value
        for index, module in enumerate(ours)
        for name, value in vars(module).items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("loss", EVERY, ids=lambda loss: type(loss).__name__)
def test_every_objective_comes_back(loss: nn.Module) -> None:
    again = decode_loss(json.loads(json.dumps(encode_loss(loss))), {})
    assert isinstance(again, nn.Module)
    assert again is not loss
    assert state(again) == state(loss)
    assert repr(again) == repr(loss)


def test_no_objective_and_no_option_is_left_out() -> None:
    assert {type(loss) for loss in EVERY} == set(KINDS.values())
    for loss in EVERY:
        assert isinstance(loss, losses.Objective)
        options = loss.options()
        assert options.keys() == inspect.signature(type(loss)).parameters.keys()


def test_a_model_keeps_its_loss(tmp_path: Path) -> None:
    net = residual_net()
    net.loss = JointLoss((1.0, 2.0, 3.0), "mean")
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    target = torch.tensor([0, 1, 2, 3])
    assert repr(loaded.loss) == repr(net.loss)
    torch.testing.assert_close(loaded.loss(loaded(images()), target), net.loss(net(images()), target))
    other = losses.InPlaceDistillation()
    assert load(tmp_path / "net", loss=other).loss is other


def test_a_weight_that_is_learned_comes_back(tmp_path: Path) -> None:
    net = residual_net()
    net.loss = JointLoss()
    setattr(net.loss, "weights", nn.Parameter(torch.tensor([0.25, 0.5, 1.5])))  # noqa: B010  # of another type
    net.loss.register_buffer("seen", torch.tensor(7))
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert isinstance(loaded.loss.weights, nn.Parameter)
    assert torch.equal(loaded.loss.weights, net.loss.get_parameter("weights"))
    assert torch.equal(loaded.loss.get_buffer("seen"), torch.tensor(7))
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in net.named_parameters()]
    loss = loaded.loss(loaded(images()), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert loaded.loss.weights.grad is not None


def test_a_taxonomy_is_bound_again(tmp_path: Path) -> None:
    net = net_of("branches")
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert state(loaded.loss) == state(net.loss)


class Own(nn.Module):
    def forward(self, outputs: Outputs, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.levels[-1], target)


class Wider(JointLoss):
    pass


@pytest.mark.parametrize("loss", [Own(), Wider(), losses.ConsensusLoss(Own())], ids=["own", "subclass", "inside"])
def test_of_another_loss_nothing_is_kept(tmp_path: Path, loss: nn.Module) -> None:
    net = residual_net()
    net.loss = loss
    with pytest.warns(AnytimeWarning, match="does not hold the loss") as warned:
        net.save(tmp_path / "net")
    assert warned[0].filename == __file__
    with pytest.warns(AnytimeWarning, match=r"was saved with the loss .*default loss") as warned:
        loaded = load(tmp_path / "net")
    assert warned[0].filename == __file__
    assert type(loaded.loss) is JointLoss
    assert load(tmp_path / "net", loss=loss).loss is loss  # and no warning


@pytest.mark.parametrize(
    ("data", "tensors", "message"),
    [
        ({"kind": "Objective", "options": {}}, {}, "'Objective' is not one of"),
        ({"kind": "JointLoss", "options": {"self": 1}}, {}, "no option 'self'"),
        ({"kind": "JointLoss", "options": {"weights": {"pickle": "x"}}}, {}, "is a 'pickle'"),
        ({"kind": "JointLoss", "options": {}}, {"forward": torch.ones(1)}, "cannot have a tensor 'forward'"),
        ({"kind": "JointLoss", "options": {}}, {"__class__": torch.ones(1)}, "cannot have a tensor"),
        ({"kind": "JointLoss", "options": {}}, {"a b": torch.ones(1)}, "cannot have a tensor"),
    ],
)
def test_what_is_no_objective(data: dict[str, Any], tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        decode_loss(data, tensors)
