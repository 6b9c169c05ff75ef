"""Backbones on the meta device: transformed without their weights, which come afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import anytimeify
from anytimeify import AnytimeModel, ArtifactError, CaptureError, SchemeError, transform
from anytimeify.capture import capture
from anytimeify.capture.computed_buffers import computed_buffers

timm: Any = pytest.importorskip("timm")
transformers: Any = pytest.importorskip("transformers")

IMAGES = torch.randn(2, 3, 64, 64)
TOKENS = {"input_ids": torch.arange(16).reshape(2, 8), "use_cache": False}
DENSE = "nested-channels{widths=0.25,0.5,1}"


def resnet() -> nn.Module:
    model: nn.Module = timm.create_model("resnet18")
    return model


def densenet() -> nn.Module:
    """Levels select channels of concatenations by tables of indices."""
    model: nn.Module = timm.create_model("densenet121", block_config=(2, 2), growth_rate=8, num_classes=10)
    return model


def swin() -> nn.Module:
    """Its masks and its tables of relative positions are in no checkpoint."""
    sizes = {"img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 16}
    model: nn.Module = timm.models.SwinTransformer(**sizes, depths=(2, 2), num_heads=(2, 4), num_classes=10)
    return model


def llama(*, tied: bool = False) -> nn.Module:
    """Its rotary frequencies are in no checkpoint."""
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        tie_word_embeddings=tied,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build().eval()


def load_shards(net: AnytimeModel, state: dict[str, Tensor], folder: Path) -> None:
    """Loads a checkpoint as libraries write them: in several files, in any order."""
    names = list(state)
    for number in range(3):
        save_file({name: state[name].clone() for name in names[number::3]}, folder / f"{number}.safetensors")
    for number in range(3):
        net.load_state_dict(load_file(folder / f"{number}.safetensors"), strict=False)


def results(net: AnytimeModel, inputs: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs = net(**inputs) if isinstance(inputs, dict) else net(inputs)
    return (*outputs.levels, *outputs.members)


@pytest.mark.parametrize(
    ("build", "inputs", "scheme"),
    [
        (resnet, IMAGES, DENSE),
        (resnet, IMAGES, "nested-channels{widths=0.5,1 connectivity=triangular}"),
        pytest.param(resnet, IMAGES, "hierarchical-ensemble{depth=2 init=copy}", marks=pytest.mark.slow),
        pytest.param(densenet, IMAGES, DENSE, marks=pytest.mark.slow),
        pytest.param(swin, IMAGES, DENSE, marks=pytest.mark.slow),
        (llama, TOKENS, DENSE),
        pytest.param(llama, TOKENS, "nested-depth{depths=0.5,1}", marks=pytest.mark.slow),
        pytest.param(llama, TOKENS, "hierarchical-ensemble{depth=1 init=copy}", marks=pytest.mark.slow),
    ],
)
def test_a_network_whose_weights_come_later(
    build: Callable[[], nn.Module], inputs: Any, scheme: str, tmp_path: Path
) -> None:
    """Is the one that is made of the loaded backbone: the same tensors, levels, costs and predictions."""
    backbone = build().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    net = transform(on_meta(build), scheme, inputs, verify=False)
    same = transform(backbone, scheme, inputs, verify=False)
    assert all(parameter.is_meta for parameter in net.parameters())
    assert net.levels == same.levels
    net.to_empty(device="cpu")
    load_shards(net, dict(backbone.state_dict()), tmp_path)
    expected = same.tensors()
    assert net.tensors().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.tensors().items())
    for one, other in zip(results(net, inputs), results(same, inputs), strict=True):
        torch.testing.assert_close(one, other)
    anytimeify.verification.verify(net, backbone)
    net.extract(0)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    backbone = llama(tied=True).eval()
    net = transform(on_meta(lambda: llama(tied=True)), DENSE, TOKENS, verify=False).to_empty(device="cpu")
    assert net.get_parameter("lm_head.weight") is net.get_parameter("model.embed_tokens.weight")
    state = dict(backbone.state_dict())
    del state["lm_head.weight"]  # files hold tied tensors once
    load_shards(net, state, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(net(**TOKENS, level=-1), backbone(**TOKENS).logits)


def test_a_strict_checkpoint_of_the_backbone() -> None:
    net = transform(on_meta(resnet), DENSE, IMAGES, verify=False).to_empty(device="cpu")
    net.load_state_dict(resnet().state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        transform(resnet(), DENSE, IMAGES, verify=False).load_state_dict(resnet().state_dict())


def test_a_checkpoint_of_the_result_itself(tmp_path: Path) -> None:
    """Levels keep what it holds of their own."""
    trained = transform(resnet(), DENSE, IMAGES, verify=False)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter))
    net = transform(on_meta(resnet), DENSE, IMAGES, verify=False).to_empty(device="cpu")
    load_shards(net, trained.state_dict(), tmp_path)
    expected = trained.tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.tensors().items())


def test_what_has_values_keeps_them() -> None:
    net = transform(on_meta(llama), DENSE, TOKENS, verify=False)
    constants = {name: tensor.clone() for name, tensor in net.tensors().items() if not tensor.is_meta}
    assert "model.rotary_emb.inv_freq" in constants
    net.to_empty(device="cpu")
    assert all(torch.equal(net.tensors()[name], value) for name, value in constants.items())


def test_values_that_are_wanted() -> None:
    net = transform(on_meta(resnet), "auxiliary-branches{branches=1}", IMAGES, verify=False)
    for wanted in (lambda: net.extract(0), net.staged, lambda: net.save("net.safetensors"), lambda: net.latency(0)):
        with pytest.raises(ArtifactError, match=r"on the meta device and have no values.*to_empty"):
            wanted()
    with pytest.raises(CaptureError, match="pass verify=False"):
        transform(on_meta(resnet), DENSE, IMAGES)
    for scheme in ("nested-weights", "nested-channels{order=l1}", "hierarchical-ensemble"):
        with pytest.raises(SchemeError, match="has no values: give it its weights first"):
            transform(on_meta(resnet), scheme, IMAGES, verify=False)


def test_examples_without_values() -> None:
    net = transform(on_meta(resnet), DENSE, IMAGES.to("meta"), verify=False)
    assert not any(tensor.is_meta for tensor in net.captured.example_inputs)
    assert net.levels == transform(resnet(), DENSE, IMAGES, verify=False).levels


class Table(nn.Module):
    """A buffer that nothing computes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(4, 8), nn.Linear(8, 4)
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.linear(x).relu()) * self.table  # type: ignore[no-any-return]


class Counting(Table):
    """One that an initialiser computes, whatever the buffer held."""

    def init_non_persistent_buffers(self) -> None:
        self.table.copy_(torch.arange(4.0))  # type: ignore[operator]


class Doubling(Table):
    """An initialiser that reads what it writes."""

    def init_non_persistent_buffers(self) -> None:
        self.table.mul_(2)  # type: ignore[operator]


def test_buffers_that_no_checkpoint_holds() -> None:
    inputs = torch.randn(3, 4)
    for kind in (Table, Doubling):
        assert not computed_buffers(on_meta(kind), ["table"])
        with pytest.raises(CaptureError, match=r"'table' is on the meta device.*parameters_on_meta"):
            transform(on_meta(kind), DENSE, inputs, verify=False)
        assert any("'table'" in note for note in capture(on_meta(kind), inputs).notes)
    assert torch.equal(computed_buffers(on_meta(Counting), ["table"])["table"], torch.arange(4.0))
    with anytimeify.parameters_on_meta():
        model = Table()
    assert model.linear.weight.is_meta
    assert not nn.Linear(1, 1).weight.is_meta
    net = transform(model, DENSE, inputs, verify=False).to_empty(device="cpu")
    assert torch.equal(net.get_buffer("table"), torch.arange(4.0))


def test_a_tensor_that_is_no_buffer() -> None:
    class Holding(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.scale = [torch.ones(4)]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale[0]

    with pytest.raises(CaptureError, match=r"'scale' is a tensor on the meta device.*parameters_on_meta"):
        transform(on_meta(Holding), DENSE, torch.randn(3, 4), verify=False)


class Modes(nn.Module):
    """Dropout in training; and with `apart` a layer that is used then alone."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.one, self.two, self.head, self.dropout = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.one(x).relu())
        return self.head(self.two(x) if self.training or not self.apart else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("apart", [False, True])
def test_both_modes_without_values(apart: bool) -> None:
    """The graphs are compared, for numbers cannot be: dropout aside they are one, or both are kept."""
    inputs = torch.randn(3, 4)
    backbone = Modes(apart=apart)
    net = transform(on_meta(lambda: Modes(apart=apart)).train(), DENSE, inputs, verify=False)
    assert any("both are kept" in note for note in net.captured.notes) is apart
    net.to_empty(device="cpu").load_state_dict(backbone.state_dict())
    anytimeify.verification.verify(net, backbone)


def test_a_copy_waits_by_itself() -> None:
    net = transform(on_meta(resnet), DENSE, IMAGES, verify=False).to_empty(device="cpu")
    other = copy.deepcopy(net)
    state = resnet().state_dict()
    net.load_state_dict(state)
    other.load_state_dict(state)
    assert all(torch.equal(tensor, net.tensors()[name]) for name, tensor in other.tensors().items())
