"""`pack` makes one prediction of all results, and `unpack` undoes it after the scheme."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from anytimeify import ArtifactError, HierarchicalEnsemble, NestedChannels, SchemeError
from anytimeify._torch import flatten
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.ir import Captured, Constant, Results, Structure
from anytimeify.passes.options import Options
from anytimeify.passes.rewrites.results import pack
from anytimeify.storage.results import decode_results, encode_results
from tests.printing import calls, lines


class Heads(nn.Module):
    """A map, a matrix in rows of its own, and a table."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
        self.register_buffer("table", torch.arange(3))

    def forward(self, x: Tensor) -> Any:
        features = self.stem(x).relu()
        return self.head(features), features.mean((2, 3)).unsqueeze(0), self.table


def captured() -> Captured:
    return capture(Heads(), torch.randn(2, 3, 4, 4), output="all")


def test_all_results_become_one_prediction() -> None:
    before = captured()
    assert before.results is not None
    packed = pack(before, before.results)
    assert calls(packed.program) == lines(
        """
        stem = conv2d(x, stem_weight, stem_bias)
        relu = relu(stem)
        head_0 = conv2d(relu, head_0_weight, head_0_bias)
        head_1 = conv2d(head_0, head_1_weight, head_1_bias)
        mean = mean.dim(relu, [2, 3])
        unsqueeze = unsqueeze(mean, 0)
        batch = sym_size.int(x, 0)
        head_1_output_0 = flatten.using_ints(head_1, 1)
        unsqueeze_output_1 = transpose.int(unsqueeze, 0, 1)
        unsqueeze_output_1_1 = flatten.using_ints(unsqueeze_output_1, 1)
        table_output_2 = unsqueeze(table, 0)
        table_output_2_1 = expand(table_output_2, [batch, 3])
        table_output_2_2 = to.dtype(table_output_2_1, torch.float32)
        results = cat([head_1_output_0, unsqueeze_output_1_1, table_output_2_2], 1)
        return results
        """
    )


def test_nothing_of_it_is_left_where_results_are_left_alone() -> None:
    before = captured()
    rewritten = Options().apply(NestedChannels((0.5, 1.0)), before, analyse(before.program))
    assert calls(rewritten.program)[-1] == "return level0_head_1, unsqueeze, table, head_1, unsqueeze, table"
    assert not any("cat(" in line or "flatten" in line for line in calls(rewritten.program))
    assert [(one.role, one.index, one.leaf) for one in rewritten.names[:3]] == [("level", 0, leaf) for leaf in range(3)]


def test_what_is_returned_pins() -> None:
    before = capture(nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3), output="all")
    with pytest.raises(SchemeError, match=r"every one is pinned:\n[\s\S]*an output of the model: aten.linear"):
        Options().apply(NestedChannels((0.5, 1.0)), before, analyse(before.program))


def test_averages_are_of_single_results() -> None:
    before = captured()
    scheme = HierarchicalEnsemble(cuts=("stem",), fuse=False, init="copy")
    rewritten = Options().apply(scheme, before, analyse(before.program))
    assert not any("cat(" in line for line in calls(rewritten.program))
    outputs = dict(zip(rewritten.names, rewritten.program.outputs, strict=True))
    tables = {node for output, node in outputs.items() if output.leaf == 2}
    assert [node.op for node in tables] == ["get_attr"]


class Fields(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (0, ["output"]),
        ((0, [1, 2]), ["output_0", "output_1_0", "output_1_1"]),
        ({"logits": 0, "states": (1, 2)}, ["logits", "states_0", "states_1"]),
        (Fields(0, OrderedDict(first=1)), ["first", "second_first"]),
        ({"a.b": 0, "a": {"b": 1}, 3: 2}, ["a_b", "a_b_", "output_3"]),
        ((0, 0, Constant(None), Constant(1)), ["output_0"]),
    ],
)
def test_names_are_made_of_paths(tree: Any, names: list[str]) -> None:
    leaves, spec = flatten(tree)
    structure = Structure(spec, tuple(leaves), 0)
    assert list(structure.names.values()) == names
    again = decode_results(encode_results(Results(structure, structure)), 3).training
    assert again.leaves == structure.leaves
    assert list(again.names.values()) == names


GOOD: dict[str, Any] = {"tree": {"dict": [["a", 0], ["b", {"constant": None}]]}, "prediction": 0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"tree": {"dict": [["a", 3]]}, "prediction": 3},
        {"tree": {"dict": [["a", -1]]}, "prediction": -1},
        {"tree": {"dict": [["a", 1]]}, "prediction": 0},
        {"tree": {"call": [["a", 0]]}, "prediction": 0},
        {"tree": {"fields": [["a", 0]]}, "prediction": 0},
        {"tree": {"fields": [["import", 0]], "name": "A"}, "prediction": 0},
        {"tree": {"fields": [["a", 0], ["a", 0]], "name": "A"}, "prediction": 0},
        {"tree": {"fields": [["a", 0]], "name": "__import__('os')"}, "prediction": 0},
        {"tree": [0], "prediction": 0},
        {"tree": "0", "prediction": 0},
    ],
)
def test_damaged_structures_are_refused(wrong: dict[str, Any]) -> None:
    decode_results({"evaluation": GOOD, "training": GOOD}, 1)
    with pytest.raises(ArtifactError, match="the structure that levels return is damaged"):
        decode_results({"evaluation": GOOD, "training": wrong}, 3)
