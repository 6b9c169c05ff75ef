"""Imports point downwards, and what is private to torch stays in one file. Reads the sources, imports nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.source_files import ROOT, import_name, sources

# From the bottom up. A row names modules and packages of anytimeify; a package stands for everything in it that no row
# names itself. A module imports from its own row and from the rows above it in this table.
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "process", "progress", "version", "lazy", "level_names", "_torch", "_torchvision"),
    ("serving.description",),
    ("operators",),
    ("kernels",),
    ("ir",),
    ("graph",),
    ("rules.notation",),
    ("rules",),
    ("io",),
    ("measure",),
    ("contract",),
    ("taxonomy",),
    ("losses",),  # they read `Outputs` alone, and schemes name their default
    ("analysis",),
    ("passes.rewrites",),
    ("codegen",),
    ("capture",),
    ("passes",),  # what a scheme is, and the options of all
    ("passes.fusion",),
    ("passes.schemes",),
    ("storage",),
    ("deploy", "early_exit"),
    ("report",),
    ("runtime", "serving"),
    ("verification",),
    ("compiler",),
    ("diagnostics", "papers", "train"),
    ("cli", "testing", "__main__"),
    ("compressed", "masks", "staged", "thresholds", ""),  # names for users, which are only passed on
)
# A registry that fills itself from a package above it imports that package, when asked, to walk through it.
DISCOVERIES = {("anytimeify.passes.scheme", "anytimeify.passes.schemes")}
SCHEMES, BASES = "anytimeify.passes.schemes", ("Scheme", "Composed", "BesideWidths")
PRIVATE_TORCH_LIVES_IN = "anytimeify._torch"
FILES = {import_name(path): path for path in sources()}
TREES = {name: ast.parse(path.read_text(), filename=str(path)) for name, path in FILES.items()}


def row_of(module: str) -> int | None:
    """The row of the longest prefix that a row names; None where there is none."""
    name = module.removeprefix("anytimeify").removeprefix(".")
    while True:
        for row, names in enumerate(ROWS):
            if name in names:
                return row
        if "." not in name:
            return None
        name = name.rpartition(".")[0]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and target of every import, wherever it stands; `from a import b` is `a.b` where that is our module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                inside = f"{module}.{alias.name}"
                yield node.lineno, inside if inside in FILES else module


def own_imports(module: str) -> Iterator[tuple[int, str]]:
    for line, target in imports(TREES[module]):
        if target.partition(".")[0] == "anytimeify" and (module, target) not in DISCOVERIES:
            yield line, target


def torch_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of what is imported or read: after `from torch import fx as f`, `f.Node` is torch.fx.Node."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
                top = alias.name.partition(".")[0]
                aliases[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node, aliases)):
            yield node.lineno, name


def dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if isinstance(node, ast.Attribute) and (value := dotted(node.value, aliases)):
        return f"{value}.{node.attr}"
    return None


def is_private_torch(name: str) -> bool:
    """`torch.utils._pytree.tree_map` is; `torch.__version__` and the operator `torch.ops.aten._softmax` are not."""
    top, *rest = name.split(".")
    return top == "torch" and rest[:1] != ["ops"] and any(p.startswith("_") and not p.startswith("__") for p in rest)


def private_torch(source: str) -> list[str]:
    return sorted({name for _, name in torch_names(ast.parse(source)) if is_private_torch(name)})


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_downwards(module: str) -> None:
    row = row_of(module)
    assert row is not None, f"{module} is in no row of the table in {Path(__file__).name}: give it its place there"
    wrong = []
    for line, target in own_imports(module):
        target_row = row_of(target)
        if target not in FILES:
            wrong.append(f"{FILES[module].relative_to(ROOT)}:{line} imports {target}, which does not exist")
        elif target_row is not None and target_row > row:
            wrong.append(f"{FILES[module].relative_to(ROOT)}:{line} imports {target}, which is above it")
    assert wrong == []


def test_imports_have_no_cycles() -> None:
    graph = {module: {target for _, target in own_imports(module)} - {module} for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a cycle of imports: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("module", sorted(set(FILES) - {PRIVATE_TORCH_LIVES_IN}))
def test_private_torch_stays_in_one_file(module: str) -> None:
    found = [f"{line}: {name}" for line, name in torch_names(TREES[module]) if is_private_torch(name)]
    assert found == [], f"private to torch: wrap it in {PRIVATE_TORCH_LIVES_IN}, whose test notices when it moves"


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.startswith("anytimeify.passes")))
def test_passes_import_modules_not_the_package(module: str) -> None:
    assert [(line, name) for line, name in imports(TREES[module]) if name in {"anytimeify", "passes"}] == []
    assert [(line, name) for line, name in imports(TREES[module]) if name.startswith((".", "passes."))] == []


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.startswith(f"{SCHEMES}.")))
def test_schemes_import_whole_schemes_of_each_other(module: str) -> None:
    """What several schemes are made of is a rewrite."""
    wrong = []
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{SCHEMES}."):
            wrong += [alias.name for alias in node.names if not is_scheme(TREES[str(node.module)], alias.name)]
    assert wrong == []


def is_scheme(tree: ast.AST, name: str) -> bool:
    """Whether a module defines a class of that name whose base is that of schemes, or of some of them."""
    classes = {one.name: one for one in ast.walk(tree) if isinstance(one, ast.ClassDef)}
    return name in classes and any(isinstance(base, ast.Name) and base.id in BASES for base in classes[name].bases)


def test_notation_knows_no_tensors() -> None:
    assert [name for _, name in imports(TREES["anytimeify.rules.notation"]) if name.partition(".")[0] == "torch"] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._C._jit()", ["torch._C", "torch._C._jit"]),
        ("from torch.utils import _pytree as p", ["torch.utils._pytree"]),
        ("import torch.fx as f\nf._symbolic_trace", ["torch.fx._symbolic_trace"]),
        ("from torch.nn.modules.batchnorm import _BatchNorm", ["torch.nn.modules.batchnorm._BatchNorm"]),
        ("import torch\ntorch.ops.aten._softmax, torch.__version__, torch.nn.Module", []),
        ("import numpy\nnumpy._core", []),
    ],
)
def test_private_torch_is_found(source: str, found: list[str]) -> None:
    assert private_torch(source) == found


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("anytimeify.rules.notation", ("rules.notation",)),
        ("anytimeify.rules.convolution", ("rules",)),
        ("anytimeify", ROWS[-1]),
        ("anytimeify.unheard_of", None),
    ],
)
def test_rows_go_by_the_longest_prefix(module: str, names: tuple[str, ...] | None) -> None:
    row = row_of(module)
    assert (None if row is None else ROWS[row]) == names


@pytest.mark.parametrize(
    ("source", "found"),
    [("class A(Scheme): ...", True), ("class A(BesideWidths): ...", True), ("class A: ...", False), ("A = 1", False)],
)
def test_whole_schemes_are_told_from_their_parts(source: str, found: bool) -> None:
    assert is_scheme(ast.parse(source), "A") == found
