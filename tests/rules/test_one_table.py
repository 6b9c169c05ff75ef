"""What an operation is stands in its rule: no other module has a table of operations, or asks which one a node is."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from anytimeify.rules.targets import aten
from tests.source_files import ROOT, import_name, sources

OUTSIDE = [
    path
    for path in sources()
    if import_name(path).startswith("anytimeify")
    and not import_name(path).startswith(("anytimeify.rules", "anytimeify.testing"))
]
# Operators of ours beside those that give their gradients; functions of Python on sizes, which are no operations.
DEFINITIONS = {"anytimeify/kernels/operators.py", "anytimeify/contract/spec.py", "anytimeify/storage/graphs.py"}
# Which operation resizes, by the dimensions.
DEFINITIONS |= {"passes/rewrites/resized_inputs.py", "passes/rewrites/interpolate.py"}
DEFINITIONS |= {"anytimeify/ir/infer_types.py"}  # runs operations to see what they give; rules stand on it
# What the dispatcher runs below programs: draws of random numbers, and calls that are numbered instead of computed.
DEFINITIONS |= {"anytimeify/capture/same_draws.py", "anytimeify/capture/traced.py"}
CAPTURE = "anytimeify/capture/"  # reads patterns of operations that the canonical form does not have


def is_operation(node: ast.AST) -> bool:
    """Whether an expression is `aten.x.y`, `torch.ops.x.y`, or the name of a constant."""
    text = ast.unparse(node)
    return text.startswith(("aten.", "torch.ops.")) or (isinstance(node, ast.Name) and text.isupper())


def tables(tree: ast.Module) -> Iterator[int]:
    """The lines of containers at the top of a module that hold operations."""
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        inside = ast.walk(value) if value is not None and not isinstance(value, ast.Attribute) else ()
        if any(ast.unparse(one).startswith(("aten.", "torch.ops.")) for one in inside):
            yield statement.lineno


def questions(tree: ast.Module) -> Iterator[int]:
    """The lines of comparisons of what a node calls with operations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            asks = any(isinstance(side, ast.Attribute) and side.attr == "target" for side in sides)
            if asks and any(is_operation(one) for side in sides for one in ast.walk(side)):
                yield node.lineno


def found(what: str) -> list[str]:
    search = {"tables": tables, "questions": questions}[what]
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in OUTSIDE}
    left_out = {name for name in trees if name in DEFINITIONS or (what == "questions" and name.startswith(CAPTURE))}
    return [f"{name}:{line}" for name, tree in trees.items() if name not in left_out for line in search(tree)]


@pytest.mark.parametrize("what", ["tables", "questions"])
def test_operations_are_known_by_their_rules_alone(what: str) -> None:
    assert found(what) == []


def test_the_search_finds_them() -> None:
    tree = ast.parse("A = {aten.relu.default: 1}\nif node.target is aten.add.Tensor or node.target in A: pass")
    assert list(tables(tree)) == [1]
    assert list(questions(tree)) == [2, 2]


def test_a_name_that_torch_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"torch has no functional operation aten\.leaky_relux"):
        aten("relu", "leaky_relux")
    with pytest.raises(ValueError, match=r"aten\.relu\.tensor"):
        aten("relu.tensor")
