"""The backbones of hierarchical ensembles against the costs that the paper's tables give, and how they are cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify.analysis.cost import cost, macs_by_node
from anytimeify.capture import capture
from anytimeify.losses import HierarchicalCoDistillation
from anytimeify.papers import recipe
from anytimeify.papers.hne import Bottleneck, InvertedResidual, MobileNetV2, ResNet50
from anytimeify.passes.scheme import parse_scheme
from anytimeify.passes.schemes.hierarchical_ensemble import HierarchicalEnsemble
from tests.papers.branches import ENTRIES, Nested


@cache
def costs(network: str, **options: Any) -> tuple[tuple[int, ...], int]:
    """Multiply-accumulates of each block, the last one with pooling and classifier; and all parameters."""
    make, size = {"resnet": (ResNet50, 32), "mobilenet": (MobileNetV2, 224)}[network]
    model: nn.Module = make(**options)
    captured = capture(model, (torch.randn(2, 3, size, size),))
    blocks: Counter[str] = Counter()
    for node, macs in macs_by_node(captured.program, captured.batch).items():
        path = node.meta["origin"].module_path.split(".")
        blocks[path[1] if path[0] == "blocks" else "classifier"] += macs
    last = blocks.pop("classifier")
    *shared, leaf = (blocks[str(index)] for index in range(len(blocks)))
    total = cost(captured.program, captured.batch)
    assert total.macs == sum(shared) + leaf + last
    return (*shared, leaf + last), total.params


def tree(blocks: tuple[int, ...]) -> list[float]:
    """Millions of multiply-accumulates of the ensembles of 1, 2, 4, ... leaves: of a block, their ancestors run."""
    depth = len(blocks) - 1
    return [sum(macs * max(1, 2 ** (b + j - depth)) for j, macs in enumerate(blocks)) / 1e6 for b in range(depth + 1)]


def test_costs_of_the_resnet() -> None:
    blocks, params = costs("resnet")
    assert [macs / 1e6 for macs in blocks] == pytest.approx([1.491, 10.928, 11.829, 11.682, 14.867], abs=5e-4)
    assert params / 1e6 == pytest.approx(0.456, abs=5e-4)
    levels = tree(blocks)
    assert levels == pytest.approx([50.80, 65.66, 107.08, 201.74, 401.99], abs=5e-3)
    assert levels[-1] / (16 * levels[0]) == pytest.approx(0.4946, abs=5e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"last_stride": 2}, [40.4, 44.9, 65.6, 118.8, 236.2]),
        ({"separable": True}, [55.0, 71.2, 116.3, 219.3, 437.1]),
        ({"mid_ratio": 0.5}, [87.5, 113.1, 185.4, 351.6, 701.8]),
    ],
    ids=str,
)
def test_what_the_paper_leaves_open_changes_the_cost(options: dict[str, Any], expected: list[float]) -> None:
    blocks, _ = costs("resnet", **options)
    assert tree(blocks) == pytest.approx(expected, abs=0.05)


def test_the_only_reading_besides_that_keeps_to_the_printed_bound() -> None:
    blocks, _ = costs("resnet", mid_ratio=0.5, separable=True, last_stride=2)
    assert tree(blocks)[3] == pytest.approx(249.8, abs=0.05)


def test_the_small_resnet_has_half_the_channels() -> None:
    large, small = ResNet50(), ResNet50(width=0.5)
    for (name, one), (_, other) in zip(large.named_parameters(), small.named_parameters(), strict=True):
        halved = [one.shape[0] // (1 if name.startswith("classifier") else 2)]
        if one.ndim > 1:  # the image has three channels in both; a depthwise filter reads one
            halved.append(one.shape[1] // (2 if one.shape[1] not in (1, 3) else 1))
        assert list(other.shape[:2]) == halved, name
    (backbone,) = recipe("hne/resnet50-cifar-small").backbones
    assert backbone.state_dict().keys() == large.state_dict().keys()


def test_costs_of_the_mobilenet() -> None:
    """The paper prints a range of 150 to 600 M; with t = 6 the tree goes from 179 M to 602 M."""
    blocks, params = costs("mobilenet")
    levels = tree(blocks)
    assert levels == pytest.approx([179.13, 211.96, 332.92, 602.26], abs=5e-3)
    assert params == sum(parameter.numel() for parameter in MobileNetV2().parameters())


# The tables, block by block: size and channels that leave each block.


@pytest.mark.parametrize(
    ("model", "size", "shapes"),
    [
        (ResNet50(), 32, [(64, 32), (64, 32), (128, 16), (256, 8), (256, 8)]),
        (ResNet50(width=0.5), 32, [(32, 32), (32, 32), (64, 16), (128, 8), (128, 8)]),
        (ResNet50(last_stride=2), 32, [(64, 32), (64, 32), (128, 16), (256, 8), (256, 4)]),
        (MobileNetV2(), 224, [(24, 56), (24, 28), (72, 14), (720, 7)]),
    ],
)
def test_blocks_are_children_that_follow_each_other(
    model: ResNet50 | MobileNetV2, size: int, shapes: list[tuple[int, int]]
) -> None:
    """So each cut is the output of one module, `blocks.<index>`, through which all data flows."""
    x = torch.randn(1, 3, size, size)
    found = []
    with torch.no_grad():
        for block in model.eval().blocks:
            x = block(x)
            found.append((x.shape[1], x.shape[2]))
    assert found == shapes


def test_layers_are_those_of_the_tables() -> None:
    layers = [module for module in ResNet50().modules() if isinstance(module, Bottleneck)]
    assert [len(list(block.children())) for block in list(ResNet50().blocks)[1:]] == [3, 4, 4, 5]
    assert [isinstance(layer.shortcut, nn.Sequential) for layer in layers] == [
        *([True] + [False] * 2 + ([True] + [False] * 3) * 2 + [True] + [False] * 4)
    ]
    weights = [module for layer in layers for module in layer.path.modules() if isinstance(module, nn.Conv2d)]
    assert len(weights) + 2 == 50  # the 3x3 stem and the classifier
    residual = [module.residual for module in MobileNetV2().modules() if isinstance(module, InvertedResidual)]
    assert residual == [False, True, False, True, True, False, *[True] * 3, False, *[True] * 2, False, *[True] * 2]


# The recipes.


def test_training_of_the_paper() -> None:
    training = recipe("hne/resnet50-cifar").training
    assert (training.batch, training.epochs, training.optimiser.weight_decay) == (128, 200, 5e-4)
    assert [training.learning_rate(epoch) for epoch in (0, 100, 200)] == pytest.approx([0.1, 0.05, 0.0])
    training = recipe("hne/mobilenetv2-imagenet").training
    assert (training.batch, training.epochs, training.optimiser.weight_decay) == (450, 150, 1e-5)
    rates = [training.learning_rate(epoch) for epoch in range(7)]
    assert rates == pytest.approx([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.5])
    assert training.learning_rate(61) == pytest.approx(0.25)
    assert training.learning_rate(146) == pytest.approx(0.5 / 64)


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("hne/resnet50")])
def test_objective_of_the_paper(name: str) -> None:
    loss = ENTRIES[name].loss()
    assert isinstance(loss, HierarchicalCoDistillation)
    assert (loss.alpha, loss.soft.temperature, loss.reduction) == (0.5, 2.0, "sum")


def test_other_objectives() -> None:
    loss = recipe("hne/mobilenetv2-imagenet").loss
    assert isinstance(loss, HierarchicalCoDistillation)
    assert (loss.alpha, loss.soft.temperature, loss.reduction) == (0.75, 2.0, "sum")


@pytest.mark.slow
def test_levels_of_the_three_architectures() -> None:
    """1, 2, 4, 8 and 16 leaves of each. Of branches behind block 2, and of networks, every leaf costs as much."""
    (_, *_, third, leaf), _ = costs("resnet")
    last = third + leaf  # what every branch behind block 2 computes
    first = sum(costs("resnet")[0]) - last
    shared = {"multibranch": (first, last), "independent": (0, first + last)}
    for name, (once, each) in shared.items():
        entry = ENTRIES[f"hne/resnet50-cifar-{name}"]
        scheme = parse_scheme(str(entry.scheme))
        assert isinstance(scheme, HierarchicalEnsemble)
        made = Nested.of_entry(entry, replace(scheme, init="copy"))
        assert made.macs == tuple(once + count * each for count in (1, 2, 4, 8, 16))
