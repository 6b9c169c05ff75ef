"""Schemes in files: also those of other people, which are found again when their module is imported."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from anytimeify import ArtifactError, NestedChannels, SchemeError, load, parse_scheme, schemes, transform
from anytimeify.passes.scheme import Scheme, compose
from anytimeify.storage.schemes import decode_scheme, encode_scheme
from tests.backbones import Residual, images
from tests.source_files import ROOT

THEIRS = """
    from dataclasses import dataclass
    from typing import ClassVar
    from anytimeify import NestedChannels
    @dataclass(frozen=True)
    class Halves(NestedChannels):
        name: ClassVar[str] = "halves"
        widths: tuple[float, ...] = (0.5, 1.0)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_schemes.py").write_text(textwrap.dedent(THEIRS))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import their_schemes  # type: ignore[import-not-found]  # written just now
    return their_schemes


def test_a_scheme_of_another_package_is_saved_and_loaded(tmp_path: Path, theirs: Any) -> None:
    net = transform(Residual(), theirs.Halves(norms="shared"), images()).eval()
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert loaded.scheme == net.scheme
    assert schemes()["halves"] is type(loaded.scheme) is theirs.Halves
    torch.testing.assert_close(loaded(images(), level=0), net(images(), level=0))

    script = f"""
        import sys, anytimeify
        try:
            anytimeify.load({str(tmp_path / "net")!r})
        except anytimeify.ArtifactError as error:
            assert "import their_schemes, which defines it, before loading" in str(error), error
        else:
            raise AssertionError
        sys.path.insert(0, {str(Path(theirs.__file__).parent)!r})
        import their_schemes
        assert type(anytimeify.load({str(tmp_path / "net")!r}).scheme) is their_schemes.Halves
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_same_name_of_another_module_is_refused(theirs: Any) -> None:
    data = encode_scheme(theirs.Halves())
    data["modules"]["halves"] = "somebody.else"
    with pytest.raises(SchemeError, match=r"'halves' of somebody\.else; here that is one of their_schemes"):
        decode_scheme(data)


def test_what_would_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Usurper(NestedChannels):  # has the name of one of ours
        extra: int = 0

    net = transform(Residual(), Usurper((0.5, 1.0)), images())
    with pytest.raises(SchemeError, match=r"cannot be saved: it is read back as something else"):
        net.save(tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
    assert schemes()["nested-channels"] is NestedChannels
    del net, Usurper
    gc.collect()


def test_the_newest_of_those_of_one_name_counts() -> None:
    def define() -> type[Scheme]:  # a cell of a notebook, run twice
        @dataclass(frozen=True)
        class Mine(NestedChannels):
            name: ClassVar[str] = "mine"

        return Mine

    first, second = define(), define()
    assert schemes()["mine"] is second
    assert encode_scheme(second())["spec"] == "mine"
    with pytest.raises(SchemeError, match="read back as something else"):
        encode_scheme(first())


def test_nobody_takes_the_name_of_one_of_ours() -> None:
    @dataclass(frozen=True)
    class Usurper(Scheme):
        name: ClassVar[str] = "nested-channels"

    assert schemes()["nested-channels"] is NestedChannels
    del Usurper
    gc.collect()


@pytest.mark.parametrize(
    "text",
    [
        "nested-channels{widths=0.3,1}",
        "hierarchical-ensemble{cuts=stem}",
        "nested-depth{depths=0.5,1} nested-channels{widths=0.5,1}",
    ],
)
def test_ours_come_back(text: str) -> None:
    scheme = compose([text])
    data = encode_scheme(scheme)
    assert decode_scheme(data) == scheme
    assert all(module.startswith("anytimeify.passes.") for module in data["modules"].values())
    assert parse_scheme(data["spec"]) == scheme


def test_damage_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        load(tmp_path / "missing")
