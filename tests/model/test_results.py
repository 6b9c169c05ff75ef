"""Levels that return what the backbone returns: every tensor of its structure, in train mode and in eval mode."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from anytimeify import (
    AnytimeModel,
    AnytimeWarning,
    ArgumentError,
    CaptureError,
    MutualDistillation,
    SandwichSampler,
    SchemeError,
    Taxonomy,
    load,
    transform,
)
from anytimeify.capture import capture
from tests.results import Detector, MultiTask, same
from tests.rounding import close

X = torch.randn(2, 3, 16, 16)
SCHEMES = (
    "nested-channels{widths=0.5,1}",
    "nested-weights{densities=0.5,1}",
    "nested-resolution{sizes=0.5,1}",
    "hierarchical-ensemble{depth=1}",
    "hierarchical-ensemble{depth=1 fuse=false}",
    "auxiliary-branches{branches=1}",
)
DENSE, TRIANGULAR = SCHEMES[0], "nested-channels{widths=0.5,1 connectivity=triangular}"


def check(net: AnytimeModel, backbone: nn.Module, x: Tensor) -> None:
    """What a level returns in the model, alone and extracted, and what the backbone returns."""
    net.eval()
    outputs = net(x)
    assert len(outputs.results) == len(net.levels)
    for level in net.levels:
        extracted = net.extract(level)(x)
        same(outputs.results[level.index], extracted)
        same(net(x, level=level), extracted)
        assert any(outputs.levels[level.index] is leaf for leaf in torch.utils._pytree.tree_leaves(outputs.results))
    if net.exact:
        same(copy.deepcopy(backbone).eval()(x), outputs.results[net.full])
        trained, net = copy.deepcopy(backbone).train(), copy.deepcopy(net).train()
        same(trained(x), net(x, level=net.full))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_results_of_every_kind(scheme: str) -> None:
    backbone = MultiTask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnytimeWarning)  # the backbone does not take smaller images for its grid
        net = transform(backbone, scheme, X, output="all")
    check(net, backbone, torch.randn(3, 3, 16, 16))
    assert net.results is not None
    assert net.results.names[:4] == ("classes", "depth", "pair_0", "anchors")
    result = net(X, level=0)
    assert result["places"][1] is result["pair"][0]
    assert result["places"][0].dtype is torch.int64
    assert any("classes, depth, pair_0" in note for note in net.report().notes)


@pytest.mark.parametrize("scheme", [*SCHEMES, TRIANGULAR])
def test_another_structure_in_train_mode(scheme: str) -> None:
    """By itself: the prediction of eval mode is not among what train mode returns."""
    backbone = Detector()
    net = transform(backbone, scheme, X)
    assert any("does not tell the prediction of eval mode" in note for note in net.report().notes)
    check(net, backbone, torch.randn(3, 3, 16, 16))
    assert isinstance(net.eval()(X, level=0), tuple)
    outputs = net.train()(X)
    assert all(isinstance(result, list) and len(result) == 2 for result in outputs.results)
    assert all(one is maps[0] for one, maps in zip(outputs.levels, outputs.results, strict=True))
    names = {name for name, _ in net.named_parameters() if not name.startswith("anytime.")}
    assert names == {name for name, _ in backbone.named_parameters()}


@pytest.mark.parametrize("scheme", [DENSE, "hierarchical-ensemble{depth=1}", "auxiliary-branches{branches=1}"])
def test_ten_steps_under_the_loss_of_the_backbone(scheme: str) -> None:
    net = transform(Detector(), scheme, X, verify=False).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.05)
    losses = []
    for _ in range(11):
        loss = torch.stack([Detector.loss(maps) for maps in net(X).results]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[10] < 0.6 * losses[0]


def test_one_output_is_what_it_was() -> None:
    """Who says which result is the prediction gets that one, as eval mode has it."""
    backbone = Detector()
    with pytest.warns(AnytimeWarning, match="what train mode returns does not tell"):
        net = transform(backbone, DENSE, X, output=0)
    assert net.results is None
    torch.testing.assert_close(net.eval()(X, level=-1), backbone.eval()(X)[0])
    assert net(X).results == ()


class Pair(NamedTuple):
    out: Tensor
    aux: Tensor | None


class Auxiliary(nn.Module):
    """A second head that only training has; `make` puts both together."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make
        self.body, self.more = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head, self.second = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        early = self.body(x).relu()
        result = self.head(self.more(early).relu())
        return self.make(result, self.second(early) if self.training else None)


@pytest.mark.parametrize(
    "make",
    [
        Pair,
        lambda out, aux: out if aux is None else OrderedDict(out=out, aux=aux),
        lambda out, aux: (out, aux is None),
        lambda out, aux: [out * (2.0 if aux is None else 1.0)],
    ],
)
def test_containers_and_constants_that_differ_between_modes(make: Any, tmp_path: Path) -> None:
    backbone, x = Auxiliary(make), torch.randn(4, 8)
    net = transform(backbone, DENSE, x, output="all")
    check(net, backbone, x)
    net.save(tmp_path / "net")
    again = load(tmp_path / "net")
    for training in (True, False):
        net.train(training)
        again.train(training)
        for one, other in zip(net(x).results, again(x).results, strict=True):
            assert type(one).__name__ == type(other).__name__
            assert getattr(one, "_fields", None) == getattr(other, "_fields", None)
            torch.testing.assert_close(
                [leaf for leaf in torch.utils._pytree.tree_leaves(one) if isinstance(leaf, Tensor)],
                [leaf for leaf in torch.utils._pytree.tree_leaves(other) if isinstance(leaf, Tensor)],
            )


def test_copies_and_compiled_code_return_structures() -> None:
    net = transform(Detector(), DENSE, X, verify=False).train()
    same(net(X), copy.deepcopy(net)(X))
    net.eval()
    same(net(X, level=0), torch.compile(net, backend="eager")(X, level=0))


def test_streams_give_structures() -> None:
    net = transform(MultiTask(), "hierarchical-ensemble{depth=1}", X, output="all", verify=False).eval()
    assert not net.resumable
    for level, result in net.stream(X):
        same(net(X, level=level), result)


class Labels(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        return self.make(self.head(self.body(x).relu()))


def test_integers_that_depend_on_parameters() -> None:
    """Narrow levels compute them; of an average they would be no labels."""
    backbone, x = Labels(lambda scores: {"scores": scores, "label": scores.argmax(1)}), torch.randn(4, 8)
    net = transform(backbone, DENSE, x, output="all")
    check(net, backbone, x)
    assert net.eval()(x, level=0)["label"].dtype is torch.int64
    with pytest.raises(SchemeError, match=r"'label', one of the results, is of type torch.int64.*no average"):
        transform(backbone, "hierarchical-ensemble{depth=1 init=copy}", x, output="all")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: transform(Labels(lambda y: (y, y @ y.T)), DENSE, x, output="all"), "'output_1', one of the results"),
        (lambda x: transform(Labels(lambda y: (y, y.shape[0])), DENSE, x, output="all"), "depends on the size of"),
        (lambda x: _net(x, taxonomy=Taxonomy.from_parents([0, 0, 1])), "may predict coarser classes than the backbone"),
        (lambda x: SandwichSampler(_net(x, norms="shared")), "widths are sampled of models whose levels"),
        (
            lambda x: transform((Labels(list), Labels(list)), MutualDistillation(branches=1), x, output="all"),
            "of two backbones, levels return predictions",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together(call: Any, message: str) -> None:
    with pytest.raises((SchemeError, ArgumentError, CaptureError), match=message):
        call(torch.randn(4, 8))


def _apart(result: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The prediction of `MultiTask`, and the rest."""
    return result["classes"], {name: part for name, part in result.items() if name != "classes"}


@pytest.mark.parametrize("consensus", ["average", "learned"])
@pytest.mark.parametrize("scheme", [DENSE, SCHEMES[3], SCHEMES[5], TRIANGULAR])
def test_a_consensus_rewrites_the_prediction_alone(scheme: str, consensus: Any) -> None:
    """What else its level returns is the last level's; it is verified against its extract."""
    backbone = MultiTask()
    net = transform(backbone, scheme, X, output="all", consensus=consensus).eval()
    out = net(X)
    *levels, last = out.results
    prediction, others = _apart(last)
    _, expected = _apart(levels[-1])
    same(others, expected)
    plain = transform(backbone, scheme, X, output="classes", consensus=consensus, verify=False).eval()
    if scheme == DENSE:
        close(prediction, plain(X).levels[-1])
    same(out.levels[-1], prediction)
    same(net.extract(-1)(X), last)
    net.train()
    net.loss(net(X), torch.zeros(len(X), dtype=torch.long)).backward()


def test_a_consensus_needs_a_prediction_in_both_modes() -> None:
    with pytest.raises(SchemeError, match="in train mode the backbone does not return the prediction of eval mode"):
        transform(Detector(), DENSE, X, consensus="average")


class TwoHeads(nn.Module):
    """As GoogLeNet: a second head in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.aux, self.head = nn.Linear(8, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        first = self.stem(x).relu()
        scores = self.head(self.body(first).relu().mean((2, 3)))
        return (scores, self.aux(first.mean((2, 3)))) if self.training else scores


def test_a_consensus_and_new_classes_of_both_modes() -> None:
    net = transform(TwoHeads(), DENSE, X, output="all", consensus="average")
    close(net.eval()(X).results[-1], net(X).levels[-1])
    _scores, aux = net.train()(X, level=-1)
    same(aux, net(X, level=1)[1])
    plain = transform(TwoHeads(), DENSE, X, output="all")
    plain.reset_classifier(4)
    assert [one.shape for one in plain.train()(X, level=0)] == [(2, 4), (2, 4)]
    assert plain.eval()(X, level=1).shape == (2, 4)


@pytest.mark.parametrize("scheme", [*SCHEMES[3:], TRIANGULAR, DENSE])
def test_stages_give_predictions(scheme: str) -> None:
    net = transform(MultiTask(), scheme, X, output="all").eval()
    expected = net(X).levels
    for (_, prediction), want in zip(net.staged().stream(X), expected, strict=True):
        close(prediction, want)


@pytest.mark.parametrize("scheme", [DENSE, SCHEMES[3], SCHEMES[5]])
def test_new_classes_among_all_results(scheme: str) -> None:
    backbone = MultiTask()
    net = transform(backbone, scheme, X, output="all").eval()
    before = dict(net.named_parameters())
    net.reset_classifier(5)
    out = net(X)
    assert {len(prediction[0]) for prediction in out.levels} == {5}
    for index, result in enumerate(out.results):
        same(result, net.extract(index)(X))
    _, others = _apart(out.results[-1])
    _, expected = _apart(backbone.eval()(X))
    if scheme != SCHEMES[3]:
        same(others, expected)
    kept = [name for name, tensor in net.named_parameters() if before.get(name) is tensor]
    assert len(kept) > len(before) / 2


def _net(x: Tensor, norms: str = "private", **options: Any) -> AnytimeModel:
    scheme = f"nested-channels{{widths=0.5,1 norms={norms} heads=shared}}"
    return transform(Labels(lambda y: (y, y.softmax(1))), scheme, x, output="all", verify=False, **options)


def test_a_hidden_state_is_no_head() -> None:
    """The layers that make it are shared by the levels, as those inside of the network are."""

    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layers = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.inner, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Any:
            states = [self.stem(x)]
            for layer in self.layers:
                states.append(states[-1] + layer(states[-1]).relu())
            return self.head(self.inner(states[-1]).relu()), states

    backbone, x = States(), torch.randn(4, 6)
    net = transform(backbone, DENSE, x, output="all")
    check(net, backbone, x)
    own = [name for name, _ in net.named_parameters() if name.startswith("anytime.")]
    assert own == ["anytime.0.head.weight", "anytime.0.head.bias"]
    pins = {row.pin.reason for row in net.report().axes if row.pin is not None and row.name.startswith("stem")}
    assert "an output of the model" in pins


# What a capture leaves behind, and what it says.


class Counting(nn.Module):
    """Installs a hook at its first call, and keeps a tensor of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "ready"):
            self.layer.register_forward_hook(lambda module, given, result: result + 1)
            self.ready = True
        self.last = self.layer(x)
        return self.last, self.last.relu()


def test_a_capture_leaves_no_attributes_and_hooks() -> None:
    model, x = Counting(), torch.randn(2, 4)
    captured = capture(model, x, output="all")
    assert not hasattr(model, "ready")
    assert not hasattr(model, "last")
    assert not model.layer._forward_hooks
    assert captured.results is not None
    same(model.eval()(x)[0], model.layer(x))


def test_a_refusal_gives_the_reasons_of_both_modes() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            y = self.layer(x)
            if self.training:
                return [y[:, :2], y[:, 2:]]
            return y if y.sum() > 0 else -y

    with pytest.raises(CaptureError, match=r"In train mode: .*does not tell.* In eval mode: .*depend on the values"):
        capture(Both(), torch.randn(2, 4))


@pytest.mark.zoo
def test_hidden_states_of_transformers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    backbone: Any = BertForSequenceClassification(
        BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50,
                   max_position_embeddings=16, output_hidden_states=True, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0)
    )  # fmt: skip
    tokens = torch.randint(50, (2, 8))
    for scheme in (DENSE, "hierarchical-ensemble{depth=1}", "auxiliary-branches{branches=1}"):
        net = transform(backbone, scheme, {"input_ids": tokens}, output="all").eval()
        same(backbone.eval()(tokens), net(input_ids=tokens, level=net.full))
        for level in net.levels:
            same(net.extract(level)(input_ids=tokens), net(input_ids=tokens, level=level))
        assert net.results is not None
        assert net.results.names == ("logits", "hidden_states_0", "hidden_states_1", "hidden_states_2")
    net.save(tmp_path / "net")
    states = load(tmp_path / "net")(input_ids=tokens, level=0).hidden_states
    same(net(input_ids=tokens, level=0).hidden_states, states)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_segmentation_with_an_auxiliary_head(name: str) -> None:
    from anytimeify._torch import prepare_torchvision

    prepare_torchvision()
    from torchvision import models

    images = torch.randn(2, 3, 48, 48)
    backbone = models.get_model(name, weights=None, weights_backbone=None, aux_loss=True, num_classes=5)
    net = transform(backbone, DENSE, images, output="all").eval()
    same(backbone.eval()(images), net(images, level=-1))
    same(net.extract(0)(images), net(images, level=0))
    assert list(net(images, level=0)) == ["out", "aux"]
