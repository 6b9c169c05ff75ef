"""What nodes carry: every key that the sources use is declared, with a reader of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import fx

from anytimeify.ir import Origin, Size, TensorType, node_meta
from anytimeify.ir.node_meta import EXPORTED, KEYS, MODULE_KEYS, Counted
from tests.source_files import import_name, sources

FILES = {import_name(path): path for path in sources()}
# What `meta` means in the JSON of an exported program is another thing.
OTHER_META = "anytimeify.capture.pt2"


def _is_meta(node: ast.expr) -> bool:
    return getattr(node, "attr", getattr(node, "id", None)) == "meta"


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def keys(tree: ast.AST) -> Iterator[str]:
    """Every key that is read from or written to something called `meta`."""
    for node in ast.walk(tree):
        found: list[str | None] = []
        match node:
            case ast.Subscript(value=value) if _is_meta(value):
                found = [_text(node.slice)]
            case ast.Call(func=ast.Attribute(value=value, attr="get" | "pop" | "setdefault"), args=[first, *_]) if (
                _is_meta(value)
            ):
                found = [_text(first)]
            case ast.Call(func=ast.Attribute(value=value, attr="update")) if _is_meta(value):
                found = [keyword.arg for keyword in node.keywords]
            case ast.Compare(left=left, ops=[ast.In() | ast.NotIn()], comparators=[value]) if _is_meta(value):
                found = [_text(left)]
            case ast.Assign(targets=[target], value=ast.Dict() as value) if _is_meta(target):
                found = list(map(_text, filter(None, value.keys)))
            case ast.AugAssign(target=target, value=ast.Dict() as value) if _is_meta(target):
                found = list(map(_text, filter(None, value.keys)))
        yield from filter(None, found)


@pytest.mark.parametrize("module", sorted(name for name in FILES if not name.startswith(OTHER_META)))
def test_no_key_is_undeclared(module: str) -> None:
    declared = {*KEYS, *EXPORTED, *MODULE_KEYS}
    assert set(keys(ast.parse(FILES[module].read_text()))) <= declared, "declare it in anytimeify/ir/node_meta.py"


def test_undeclared_keys_are_found() -> None:
    text = "n.meta['a'] = n.meta.get('b'); 'c' in meta; meta = {'d': 1, **x}; n.meta |= {'e': 2}; n.meta.update(f=1)"
    assert set(keys(ast.parse(text))) == set("abcdef")


KIND = TensorType((Size(1, ("s0",)), Size(3)), torch.float32)
ROWS = np.arange(3)
VALUES = [
    ("type", KIND, ["[s0, 3]", 3]),
    ("type", (KIND, None), [[KIND]]),
    ("type", Size(3), [3]),
    ("origin", Origin("conv"), ["conv", None]),
    ("checkpoint", 0, [None, True]),
    ("part", True, [False, 1]),
    ("mask_nonzeros", 3, [-1, "all"]),
    ("through", True, [False, 1]),
    ("weight_nonzeros", 3, [None]),
    ("blocks", ((ROWS, ROWS),), [(ROWS, ROWS), [(ROWS, ROWS)]]),
    ("counts", (Counted("other", 0.5, (("add", 1),)),), [[Counted("other", 0.5, ())], (Counted("other", 3.0, ()),)]),
    ("granularity", "coarse", [1]),
    ("packed", ("logits", "aux"), ["logits", ("logits", 1)]),
    ("granularities", (("", 3), ("coarse.", 2)), [("", 3), [("", 3)]]),
]


@pytest.mark.parametrize(("key", "value", "wrong"), VALUES)
def test_every_key_takes_values_of_its_type(key: str, value: object, wrong: list[object]) -> None:
    assert {name for name, _, _ in VALUES} == KEYS.keys()
    assert KEYS[key].allows(value)
    assert not any(map(KEYS[key].allows, wrong))


def test_readers() -> None:
    node = fx.Graph().placeholder("x")
    assert (node_meta.checkpoint_of(node), node_meta.is_part(node), node_meta.is_masked(node)) == (None, False, False)
    assert (node_meta.weight_blocks_of(node), node_meta.granularities_of(node)) == ((), ())
    assert (node_meta.origin_of(node), node_meta.value_of(node)) == (Origin(), None)
    node.meta.update(type=TensorType((Size(2), Size(3)), torch.float32), origin=Origin("fc"), checkpoint=2)
    assert (node_meta.checkpoint_of(node), node_meta.origin_of(node)) == (2, Origin("fc"))
    assert node_meta.mask_nonzeros_of(node) == 6
    node.meta.update(mask_nonzeros=4, granularity="coarse")
    assert (node_meta.mask_nonzeros_of(node), node_meta.granularity_of(node)) == (4, "coarse")
    node.meta["type"] = Size(3)
    with pytest.raises(AssertionError, match="x is not one tensor"):
        node_meta.tensor_type(node)
