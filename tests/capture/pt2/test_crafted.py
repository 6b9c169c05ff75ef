"""Files that were made to run code run none here, and say which member and field they are refused for."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

import pytest
import torch

from anytimeify.capture import load_exported, resolve
from anytimeify.errors import ArtifactError
from tests.capture.pt2.crafted import CRAFTED, EXAMPLES, RUNS, genuine, write


def call(file: Path, *, trust: bool = True) -> None:
    """Loads and runs a program."""
    program = load_exported(file, trust_pickle=trust)
    program.module()(*EXAMPLES)


def file_of(name: str, folder: Path) -> Path:
    parts = genuine(folder / "ran")
    CRAFTED[name](parts)
    return write(parts, folder / "bad.pt2")


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which modules are imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "probe_of_imports", raising=False)
    return tmp_path


def test_the_genuine_file_is_read(tmp_path: Path) -> None:
    call(write(genuine(tmp_path / "ran"), tmp_path / "good.pt2"), trust=False)


@pytest.mark.parametrize("name", CRAFTED)
def test_nothing_runs(name: str, imports: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        resolve(str(file_of(name, imports)))
    assert not (imports / "ran").exists()
    message = str(caught.value)
    assert message.startswith(f"'{imports / 'bad.pt2'}' ")
    assert message.isprintable()
    assert len(message) < 1_000


@pytest.mark.parametrize("name", sorted(RUNS))
@pytest.mark.filterwarnings("ignore")  # torch's, of old forms
def test_torch_runs_them(name: str, imports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    file = file_of(name, imports)
    assert not (imports / "ran").exists()
    with contextlib.suppress(Exception), torch.enable_grad():  # a program that fails on its way leaves it switched off
        program = torch.export.load(file)
        args, kwargs = program.example_inputs
        program.module()(*args, **kwargs)
    assert (imports / "ran").exists()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("pickled_inputs", r"example inputs.*'posix\.system'"),
        ("pickle_named_as_json", r"member 'model/data/constants/opaque_obj_0\.json'"),
        ("size_that_is_code", r"member 'models/model\.json'.*tensor_values\.x\.sizes\[0\]\.as_expr\.expr_str"),
        ("guard_that_is_code", r"guards_code\[0\]: is no arithmetic"),
        ("call_of_a_module_of_python", r"graph\.nodes\[0\]\.target: 'torch\.hub\.os\.system'"),
        ("operator_that_writes_a_file", r"from_file.* takes 'filename'"),
        ("default_that_is_imported", r"out_spec: a defaultdict of 'probe_of_imports\.x' imports a module"),
        ("compiled_library", r"member 'model/data/aotinductor/model/model\.so'"),
        ("view_beyond_its_storage", r"tensor 'layer\.weight': sizes \[4000, 3\].*beyond its 12 elements"),
        ("archive_of_an_older_torch", r"older torch"),
        ("operator_of_another_library", r"library other than torch.*--trust-pickle"),
        ("unknown_field", r"graph_module\.graph: 'hooks' is none of the fields"),
    ],
)
def test_what_is_refused_is_named(name: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=where):
        load_exported(file_of(name, tmp_path))


def test_with_consent_torch_reads_the_file(imports: Path) -> None:
    call(write(genuine(imports / "ran"), imports / "good.pt2"))
    with contextlib.suppress(ArtifactError):
        load_exported(file_of("pickled_inputs", imports), trust_pickle=True)
    assert (imports / "ran").exists()
