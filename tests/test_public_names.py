"""The names of the package: imported when they are asked for, the same for people, type checkers and Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anytimeify
import anytimeify.runtime

PACKAGES = (anytimeify, anytimeify.runtime)


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every name that a package imports for type checkers alone, and where it comes from."""
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            other = f":{alias.name}" if alias.asname else ""
            yield alias.asname or alias.name, f"{node.module}{other}"


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_what_python_finds(package: object) -> None:
    path = Path(vars(package)["__file__"])
    names = dict(imported(ast.parse(path.read_text())))
    assert names == vars(package)["_PLACES"]
    assert names.keys() <= set(vars(package)["__all__"]) <= set(dir(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_is_that_of_a_module(package: object) -> None:
    """Importing a module binds its name in its package, over whatever has that name."""
    folder = Path(vars(package)["__file__"]).parent
    modules = {path.stem for path in folder.iterdir()}
    assert modules.isdisjoint(vars(package)["__all__"])


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            "import anytimeify.compiler; from anytimeify import transform; assert transform.__name__ == 'transform'",
            marks=pytest.mark.slow,
        ),
        "from anytimeify import transform; import anytimeify.compiler; assert anytimeify.transform is transform",
        pytest.param(
            "from anytimeify import *; assert transform.__name__ == 'transform' and source.__name__ == 'resolve'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import anytimeify; assert callable(anytimeify.transform) and anytimeify.losses.JointLoss",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import anytimeify.runtime.model; import anytimeify; assert anytimeify.load.__name__ == 'load'",
            marks=pytest.mark.slow,
        ),
        "from anytimeify import AnytimeError; import sys; assert 'torch' not in sys.modules",
        "from anytimeify import level_names, runtime; import sys; assert 'torch' not in sys.modules",
    ],
)
def test_names_are_found_in_any_order(code: str) -> None:
    run(code)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="module 'anytimeify' has no attribute 'transfrom'"):
        anytimeify.transfrom  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'transfrom'"):
        exec("from anytimeify import transfrom")
    assert not hasattr(anytimeify, "_transform")
