"""The tables are those of torch, and say for each field what it may hold; so is the table of what a node may call."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch._export.serde import schema as torchs
from torch._export.serde import serialize

from anytimeify.capture.pt2.checks import Record, RefusedError, dotted, name, number, prose, quoteless
from anytimeify.capture.pt2.operators import SYMBOLIC, target
from anytimeify.capture.pt2.schema import _TABLE, UNREAD
from anytimeify.capture.pt2.tensors import DTYPES
from anytimeify.capture.pt2.trees import input_tree, tree

OLD = torch.__version__ < "2.13"
OWN = (
    "Input",
    "Number",
    "PayloadTensor",
    "Nothing",
    "GraphMetadata",
    "NodeMetadata",
)  # narrower than torch's, or added


@pytest.mark.parametrize("row", [row for row in _TABLE if row not in OWN])
def test_rows_are_those_of_torch(row: str) -> None:
    """A field that torch adds is decided upon, not read without a look. An older torch has fewer."""
    ours = _TABLE[row]
    known = set(ours.fields if isinstance(ours, Record) else ours.variants)
    theirs = {field.name for field in dataclasses.fields(getattr(torchs, row))}
    assert theirs <= known | UNREAD.get(row, set())
    assert OLD or theirs == known | UNREAD.get(row, set())


def test_types_of_elements_are_those_of_torch() -> None:
    theirs = {int(kind): dtype for kind, dtype in serialize._SERIALIZE_TO_TORCH_DTYPE.items()}
    assert theirs.items() <= DTYPES.items()
    assert OLD or theirs == DTYPES


def test_functions_of_symbols_are_those_of_torch() -> None:
    theirs = {f"{function.__module__}.{function.__name__}" for function in serialize._SYM_OPS}
    assert theirs <= SYMBOLIC


@pytest.mark.parametrize(
    "text",
    [
        *(
            "torch.ops.aten.add.Tensor",
            "torch.ops.aten.__and__.Tensor",
            "torch.ops.aten.conv2d.default",
            "_operator.mul",
        ),
        *("torch.ops.aten.gelu.default", "torch.ops.anytimeify.drop_path.default", "torch.sym_max", "math.trunc"),
        *("torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.aten.pad.default"),
    ],
)
def test_targets(text: str) -> None:
    target(text, "")


@pytest.mark.parametrize(
    "value",
    [
        *(
            "os.system",
            "torch.hub.os.system",
            "math.os",
            "_operator.attrgetter",
            "_operator.methodcaller",
            "torch.load",
            "eval",
        ),
        *(
            "torch.ops.load_library",
            "torch.ops.aten.save.default",
            "torch.ops.aten.from_file.out",
            "torch.ops.aten.add",
            "",
        ),
        *(
            "torch.ops.aten._print.default",
            "torch.ops.higher_order.call_torchbind",
            "torch.ops.higher_order.print",
            "#a:b",
        ),
        *(
            "torch.ops.aten.add.__class__",
            "torch.ops.aten.add.Tensor.__class__",
            "torch.ops.__class__.x.y",
            7,
            None,
            ["a"],
        ),
        *(
            "torch.ops.inductor.resize_storage_bytes_.default",
            "torch.ops.aten.add.nothing",
            "torch.ops.aten. add.Tensor",
        ),
    ],
)
def test_no_targets(value: Any) -> None:
    with pytest.raises(RefusedError):
        target(value, "")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (
            name,
            ["x", "p_layer_weight", "größe"],
            ["", "a b", "a=1", "a,b", "class", "__class__", "1a", "a\n", "a" * 5_000, 1],
        ),
        (
            dotted,
            ["", "a.0.weight", "conv-1", "a b.c"],
            ['a"b', "a'b", "a\\b", "a\nb", "a.__class__", "a{b}", "a`b", None],
        ),
        (quoteless, ["add", "a, b: (c) # d"], ["a'b", 'a"b', "a\\b", "a\nb", "\x1b[0m", "{a}", "\u2028", 3]),
        (prose, ['say "x" {y}\n\tz'], ["\x1b[0m", "\r", "\u2028", "\x00", "\x85", 3]),
        (number, [1, 0.5, "Infinity", "-Infinity", "NaN"], [True, "1", None, 1 << 70, "nan"]),
    ],
)
def test_kinds(check: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check(value, "")
    for value in bad:
        with pytest.raises(RefusedError):
            check(value, "")


def test_trees_are_names_and_data() -> None:
    from collections import OrderedDict, defaultdict, deque

    from torch.utils._pytree import tree_structure, treespec_dumps

    value = (1, [2, {"a": 3}, OrderedDict(b=4), defaultdict(int, c=5), deque([6]), None])
    tree(treespec_dumps(tree_structure(value)), "")
    input_tree(treespec_dumps(tree_structure(((1,), {"x": 2}))), "")
    with pytest.raises(RefusedError, match="keyword argument"):
        input_tree(treespec_dumps(tree_structure(((1,), {"x y": 2}))), "")
    for text in (
        "",
        "1",
        "[2, null]",
        "[1]",
        '[1, {"type": null}]',
        "[" * 5,
        '[1, {"type": 7, "context": 1, "children_spec": []}]',
    ):
        with pytest.raises(RefusedError):
            tree(text, "")
