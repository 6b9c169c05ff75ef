"""What is in the wheel, and that it works where the repository is not."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.source_files import ROOT, import_name, sources

PACKED = ("anytimeify", "passes", "pyproject.toml", "README.md", "LICENSE")  # what a build reads


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a `build/` folder left in the checkout would put removed modules back into the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKED:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, folder / "src" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, folder / "src" / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "src")],
        check=True,
        capture_output=True,
    )
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return target


EXTRAS = {
    *("timm", "torchvision", "transformers", "onnx", "onnxscript", "onnxruntime", "accelerate", "torchmetrics"),
    *("matplotlib", "sklearn", "hypothesis", "pytest", "yaml", "huggingface_hub"),
    "torch._dynamo",  # torch imports it when something is exported: it takes as long as all of ours
}
SCRIPT = """
import json, sys
import anytimeify
all(getattr(anytimeify, name) for name in anytimeify.__all__)
modules = sorted(sys.modules)
import anytimeify.passes
from anytimeify import cli
print(json.dumps({
    "modules": modules,
    "files": [anytimeify.__file__, anytimeify.passes.__file__],
    "main": callable(getattr(cli, "main", None)),
    "version": anytimeify.__version__,
}))
"""


@pytest.fixture(scope="module")
def outside(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a new process finds whose `anytimeify` is the installed one."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({import_name(path.with_name("__init__.py")) for path in sources()})


def test_every_folder_with_code_is_a_package() -> None:
    assert [str(path.parent) for path in sources() if not path.with_name("__init__.py").exists()] == []


def test_the_link_for_type_checkers_points_to_the_passes() -> None:
    assert (ROOT / "anytimeify" / "passes").readlink() == Path("../passes")


def test_nothing_is_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    assert [text for text in requirements if "==" in text or "~=" in text] == []


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    packed = {name for name in names if not name.startswith("anytimeify-") or ".dist-info/" not in name}
    files = {path.relative_to(ROOT).as_posix() for path in sources()}
    modules = {f"anytimeify/{name}" if name.startswith("passes/") else name for name in files}
    assert packed == modules | {"anytimeify/py.typed", "anytimeify/report/page.html"}


def test_wheel_works_outside_the_repository(site: Path, outside: dict[str, Any]) -> None:
    package = site / "anytimeify"
    assert outside["files"] == [str(package / "__init__.py"), str(package / "passes" / "__init__.py")]


def test_importing_needs_no_extra(outside: dict[str, Any]) -> None:
    assert "anytimeify" in outside["modules"]
    assert EXTRAS & set(outside["modules"]) == set()


def test_command_is_installed(site: Path, outside: dict[str, Any]) -> None:
    (entry,) = site.glob("anytimeify-*.dist-info/entry_points.txt")
    assert "anytimeify = anytimeify.cli:main" in entry.read_text()
    assert outside["main"]


def test_the_version_is_that_of_the_wheel(outside: dict[str, Any]) -> None:
    assert outside["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_passes_have_one_name() -> None:
    with pytest.raises(ImportError, match=r"import it as 'anytimeify\.passes'"):
        importlib.import_module("passes")
