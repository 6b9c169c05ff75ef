"""Levels are the backbone on smaller inputs: exactly, with costs that follow, alone and beside widths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import anytimeify
from anytimeify import (
    AnytimeModel,
    AnytimeWarning,
    NestedChannels,
    NestedResolution,
    SchemeError,
    VerificationError,
    transform,
)
from anytimeify.testing.costs import found_costs

SIZES = (0.5, 0.75, 1.0)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Convolutional(nn.Module):
    """Strides, a shortcut, a pooling of fixed windows, and a view of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.body, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.pool(x + self.body(x))
        result: Tensor = self.head(x.view(x.shape[0], 8, -1).mean(2))
        return result


class Tokens(nn.Module):
    """Patches, a class token, and an embedding of where they are: one table, or one for rows and columns."""

    def __init__(self, *, grid: bool = False) -> None:
        super().__init__()
        self.patch, self.grid = nn.Conv2d(3, 16, 4, stride=4), grid
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 16, 8, 8) if grid else torch.randn(1, 65, 16))
        self.norm, self.mlp, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        if self.grid:
            x = x + self.positions
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        if not self.grid:
            x = x + self.positions
        attention = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        result: Tensor = self.head(self.norm(x + self.mlp(attention))[:, 0])
        return result


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv1d(2, 8, 5), nn.Conv1d(8, 8, 3, stride=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.first(x).relu()).relu().mean(-1))
        return result


def smaller(x: Tensor, size: float, mode: str = "bilinear") -> Tensor:
    sizes = tuple(round(n * size) for n in x.shape[2:])
    return x if size == 1 else interpolate(x, sizes, mode=mode)


def assert_levels_are_the_backbone(net: AnytimeModel, model: nn.Module, x: Tensor, mode: str = "bilinear") -> None:
    net.eval(), model.eval()
    for size, level in zip(SIZES, net(x).levels, strict=True):
        torch.testing.assert_close(level, model(smaller(x, size, mode)))


@pytest.mark.parametrize("norms", ["private", "shared"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest", "area"])
def test_a_level_is_the_backbone_on_a_smaller_image(mode: str, norms: str) -> None:
    model = Convolutional()
    net = transform(model, f"nested-resolution{{sizes=0.5,0.75,1 norms={norms} mode={mode}}}", IMAGES)
    assert_levels_are_the_backbone(net, model, IMAGES, mode)
    private = [name for name in net.state_dict() if name.startswith("anytime.")]
    assert bool(private) == (norms == "private")
    assert all(".norm." in name for name in private)


def test_a_level_of_a_series_is_the_backbone_on_a_shorter_one() -> None:
    model, x = Waves(), torch.randn(2, 2, 40)
    assert_levels_are_the_backbone(transform(model, NestedResolution(), x), model, x, "linear")


def test_costs_are_those_of_the_extracts() -> None:
    net = transform(Convolutional(), NestedResolution(), IMAGES)
    macs = [level.cost.macs for level in net.levels]
    assert macs == sorted(set(macs))
    for level in net.levels:
        assert found_costs(net, level.index) == level.cost[:2]


def test_all_levels_train_the_same_weights() -> None:
    net = transform(Convolutional(), NestedResolution(), IMAGES).train()
    outputs = net(IMAGES)
    for level in outputs.levels:
        (gradient,) = torch.autograd.grad(level.square().sum(), [net.get_parameter("stem.weight")], retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("grid", [False, True])
def test_positions_are_interpolated(grid: bool) -> None:
    model = Tokens(grid=grid).eval()
    net = transform(model, NestedResolution(), IMAGES).eval()
    for size, level in zip(SIZES, net(IMAGES).levels, strict=True):
        other, side = Tokens(grid=grid).eval(), round(8 * size)
        state = model.state_dict()
        table = state["positions"]
        patches = table if grid else table[:, 1:].transpose(1, 2).reshape(1, 16, 8, 8)
        if side < 8:
            patches = interpolate(patches, (side, side), mode="bicubic", antialias=True)
        rows = patches if grid else torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], 1)
        other.positions = nn.Parameter(rows)
        other.load_state_dict({**state, "positions": rows})
        torch.testing.assert_close(level, other(smaller(IMAGES, size)))
    assert net.get_parameter("positions").shape == table.shape


def test_sizes_and_widths_pair_up(tmp_path: Path) -> None:
    model = Convolutional()
    net = transform(model, [NestedChannels((0.5, 1, 1)), NestedResolution((0.5, 0.5, 1))], IMAGES).eval()
    assert [level.name for level in net.levels] == ["size 0.5, width 0.5", "size 0.5, width 1", "size 1, width 1"]
    torch.testing.assert_close(net(IMAGES, level=1), model.eval()(smaller(IMAGES, 0.5)))
    thin = transform(model, NestedChannels((0.5, 1)), IMAGES).eval()
    torch.testing.assert_close(net(IMAGES, level=0), thin.extract(0)(smaller(IMAGES, 0.5)))
    net.save(tmp_path / "net.safetensors")
    loaded = anytimeify.load(tmp_path / "net.safetensors").eval()
    for one, other in zip(net(IMAGES).levels, loaded(IMAGES).levels, strict=True):
        torch.testing.assert_close(one, other)


class Flattened(Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.stem(x)).relu())
        result: Tensor = self.head(x.flatten(1))
        return result


class CountsPositions(Convolutional):
    """Divides by a number of positions that Python has computed."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = self.head(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))
        return result


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.table(x).mean(1))
        return result


@pytest.mark.parametrize(
    ("model", "x", "scheme", "message"),
    [
        (Flattened(), IMAGES, "nested-resolution", r"linear.*cannot|head\.weight weighs every position"),
        (Words(), torch.ones(2, 4, dtype=torch.long), "nested-resolution", "no input of this network has positions"),
        (Convolutional(), IMAGES, "nested-resolution{sizes=1,0.5}", "expected increasing numbers"),
        (Convolutional(), IMAGES, "nested-resolution{sizes=0.99,1}", "inputs of the same size"),
        (Convolutional(), IMAGES, "nested-resolution{mode=cubic}", "mode='cubic'"),
        (Waves(), torch.randn(2, 2, 40), "nested-resolution{mode=bicubic}", "is for images"),
        (Convolutional(), IMAGES, "nested-resolution nested-channels{widths=0.5,1}", "sizes has 3 levels and widths 2"),
    ],
)
def test_refused(model: nn.Module, x: Tensor, scheme: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        transform(model, scheme, x)


@pytest.mark.parametrize("scheme", ["nested-resolution", "nested-resolution nested-channels{widths=0.25,0.5,1}"])
def test_a_number_of_positions_in_the_graph_is_noticed(scheme: str) -> None:
    with pytest.raises(VerificationError, match="computes something from their size"):
        transform(CountsPositions(), scheme, IMAGES)


class Strict(Convolutional):
    """Takes images of one size."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 32:
            raise ValueError("an image has 32 pixels")
        return super().forward(x)


def test_what_was_not_compared_is_said() -> None:
    with pytest.warns(AnytimeWarning, match=r"size 0\.5 was not compared with the backbone.*an image has 32 pixels"):
        transform(Strict(), "nested-resolution{sizes=0.5,1}", IMAGES)


def test_the_report_says_what_is_interpolated() -> None:
    for scheme in ("nested-resolution{sizes=0.5,1}", "nested-resolution{sizes=0.5,1} nested-channels{widths=0.5,1}"):
        assert "interpolated positions by levels of smaller inputs: positions" in str(
            transform(Tokens(), scheme, IMAGES).report()
        )


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name",
    [
        *("torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0"),
        *("torchvision:densenet121", "torchvision:vgg11_bn", "torchvision:vit_b_16", "timm:convnext_atto"),
        *("timm:vit_tiny_patch16_224", "timm:poolformer_s12", "timm:pvt_v2_b0", "timm:pit_ti_224", "timm:regnety_002"),
    ],
)
def test_backbones(name: str) -> None:
    source = anytimeify.source(name)
    net = transform(source, NestedResolution())
    macs = [level.cost.macs for level in net.levels]
    assert macs == sorted(set(macs))
