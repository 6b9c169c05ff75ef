"""The names that the package makes are read as they were built."""

from __future__ import annotations

import pytest
from torch import nn

from anytimeify import transform
from anytimeify.ir import names
from tests.backbones import Residual, images


@pytest.mark.parametrize("name", ["weight", "conv.weight", "layer1.0.bn.running_mean"])
def test_a_tensor_is_its_layer_and_what_it_is_there(name: str) -> None:
    assert names.join(*names.split(name)) == name
    assert names.layer(name) == names.split(name)[0]


def test_norms_count_their_batches_beside_their_statistics() -> None:
    assert names.counter("layer1.bn.running_mean") == "layer1.bn.num_batches_tracked"
    assert names.counter("running_mean") == "num_batches_tracked"  # a norm that is the whole backbone
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    assert [name for name in state if names.is_counter(name)] == [names.counter("0.running_mean")]
    assert not names.is_counter("my_num_batches_tracked")


def test_a_levels_own_tensors() -> None:
    name = names.of_level(12, "layer1.weight")
    assert name == "anytime.12.layer1.weight"
    assert names.level_of(name) == 12
    assert names.without_level(name, 12) == "layer1.weight"
    assert names.without_level(name, 1) == name
    others = ("layer1.weight", "12.weight", names.CONSENSUS + "weight", names.CONSTANTS + "index_0")
    assert [names.level_of(other) for other in others] == [None] * 4
    assert [names.is_added(other) for other in others] == [False, False, True, True]
    assert not names.is_added("anytimes.weight")


def test_masks() -> None:
    assert names.mask(0, "masks", "layer1.0.weight") == "anytime.0.masks.layer1.0.weight"
    for group in ("masks", "masks_"):
        assert names.of_mask(names.mask(3, group, "layer1.0.weight")) == (3, "layer1.0.weight")


def test_a_level_that_is_alone_has_the_backbones_names_where_they_are_free() -> None:
    given = ["anytime.0.fc.weight", "anytime.0.bn.weight", "bn.weight", "anytime.1.fc.weight", "conv.weight"]
    found = names.backbone_names(given, 0)
    assert list(found.values()) == [
        "fc.weight",
        "anytime.0.bn.weight",
        "bn.weight",
        "anytime.1.fc.weight",
        "conv.weight",
    ]
    assert names.backbone_node("level0_add", 0) == names.backbone_node("member0_add", 0) == "add"
    assert names.backbone_node("level10_add", 1) == "level10_add"
    assert names.without_level_prefix("level10_add") == "add"


def test_heads_are_called_after_the_level_that_has_them() -> None:
    given = names.taxonomy_prefix("coarse") + "fc.weight"
    assert given == "anytime.taxonomy.coarse.fc.weight"
    assert names.settled(given, {2}) == "anytime.2.taxonomy.coarse.fc.weight"
    assert names.settled(given, {0, 2}) == given
    assert names.settled(given, ()) == given
    assert names.settled(names.of_level(1, given), {0}) == "anytime.1.taxonomy.coarse.fc.weight"
    assert names.settled("fc.weight", {1}) == "fc.weight"


def test_fresh_names() -> None:
    taken = {"a", "a_1"}
    assert [names.fresh(name, taken) for name in ("a", "a", "b")] == ["a_2", "a_3", "b"]
    assert names.block("conv.weight", 1, "bias") == "conv.1.bias"
    assert names.block("weight", 1, "bias") == "1.bias"
    assert names.bias("conv.weight") == "conv.bias"


def test_what_a_model_adds_lies_below_one_name() -> None:
    net = transform(Residual(), "nested-channels{widths=0.5,1}", images(), consensus="learned")
    backbone = Residual().state_dict().keys()
    added = net.tensors().keys() - backbone
    assert added
    assert all(map(names.is_added, added))
    private = {names.without_level(name, 0) for name in added if names.level_of(name) == 0}
    assert private
    assert private <= backbone
