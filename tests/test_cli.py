"""The command line: what it writes, prints, and refuses with exit status 1, one message, and nothing written."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import pytest
import torch
from rich.console import Console

import anytimeify
from anytimeify import cli, progress
from anytimeify.cli.commands import papers
from anytimeify.cli.models import MODEL
from anytimeify.storage.export import FORMATS
from tests.backbones import Residual, images

MODELS = """
import torch
from torch import nn
from tests.backbones import Residual, images


def residual():
    torch.manual_seed(0)
    return Residual(), (images(),)


def without_inputs():
    return Residual()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.fc(x)
        return -self.fc(x)


def branching():
    return Branching(), (torch.randn(2, 4),)


def pinned():
    return nn.Linear(4, 3), (torch.randn(2, 4),)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.top, self.side = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x):
        x = nn.functional.normalize(self.stem(x), dim=1) * 16**0.5
        return {"scores": self.top(x), "side": self.side(x)}


def two():
    return Two(), (torch.randn(2, 4),)


def failing():
    raise ValueError("no such luck")
"""
SCHEME = "nested-channels{widths=0.25,0.5,1}"


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Shell:
    """Runs the command line in this process, in an empty folder with a module of models beside it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, *arguments: str) -> Result:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        code = caught.value.code
        out, err = self.capsys.readouterr()
        return Result(code if isinstance(code, int) else 0, out, err)

    def refuses(self, *arguments: str) -> str:
        """The message of a refusal, after checking that it is one, that it is all, and that nothing was written."""
        before = sorted(self.folder.rglob("*"))
        status, out, err = self(*arguments)
        assert (status, out) == (1, "")
        lines = err.splitlines()
        starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
        assert len(starts) == 1, err
        assert all(line.endswith(" ...") for line in lines[: starts[0]]), err  # progress, nothing else
        assert "Traceback" not in err
        assert [path for path in sorted(self.folder.rglob("*")) if "__pycache__" not in path.parts] == before
        return "\n".join(lines[starts[0] :])


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
LLAMA_70B = {
    **LLAMA,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(tmp_path)
    yield Shell(folder, capsys)
    sys.modules.pop("models", None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(Residual(), (images(),), dynamic_shapes=shapes, strict=False), path)
    return path


# What works.


def test_inspect_a_configuration_without_weights(shell: Shell) -> None:
    pytest.importorskip("transformers")
    Path("llama").mkdir()
    Path("llama/config.json").write_text(json.dumps(LLAMA))
    status, out, err = shell("inspect", "hf:llama", "--json", "--scheme", SCHEME)
    assert status == 0, err
    found = json.loads(out)
    net = anytimeify.transform(anytimeify.source("hf:llama"), SCHEME, verify=False)
    assert [(row["name"], row["macs"], row["params"]) for row in found["levels"]] == [
        (level.name, level.cost.macs, level.cost.params) for level in net.levels
    ]
    assert any("on the meta device" in note for note in found["notes"])
    assert "width 0.25" in shell("inspect", "hf:llama", "--scheme", SCHEME).out
    assert "has no values" in shell.refuses("inspect", "hf:llama", "--scheme", "nested-weights")


@pytest.mark.slow
def test_inspect_a_model_of_70_billion_parameters(tmp_path: Path) -> None:
    """Within a minute and 4 GiB; of the processor, for others may use it too."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    command = [sys.executable, "-m", "anytimeify", "inspect", f"hf:{tmp_path}", "--scheme", SCHEME, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    levels = json.loads(done.stdout)["levels"]
    assert [round(row["params"] / 1e9) for row in levels] == [5, 18, 71]
    assert used.ru_utime + used.ru_stime < 60
    assert used.ru_maxrss < 4 * 2**20


def test_weights_of_a_program_are_its_own(shell: Shell, exported: Path) -> None:
    command = ("convert", str(exported), "--scheme", SCHEME, "--out", "net")
    assert "has no pretrained weights to choose: sources that do are" in shell.refuses(*command, "--pretrained")
    assert "is an exported program, which has its weights" in shell.refuses(*command, "--checkpoint", "weights.pth")
    assert not Path("net").exists()


def test_limits(shell: Shell, exported: Path) -> None:
    command = ("convert", str(exported), "--scheme", "hierarchical-ensemble{depth=1}", "--out", "net")
    message = shell.refuses(*command, "--limits", "nodes=20")
    assert re.search(r"about \d+ nodes, and the limit is nodes=20\..* --limits nodes=\d+", message)
    assert shell(*command, "--limits", "nodes=many").status == 2


def test_progress_on_a_terminal(shell: Shell, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, float]] = []
    with progress.shown_by(lambda name, share: steps.append((name, share))):
        anytimeify.transform(torch.export.load(exported), SCHEME)
    assert [name for name, _ in steps] == ["capturing", "applying the scheme", "building levels", "verifying"]
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] < 1
    terminal = sys.stderr
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: console.file is terminal))
    status, out, err = shell("convert", str(exported), "--scheme", SCHEME, "--out", "net")
    assert status == 0
    assert "verifying" in err
    assert "verifying" not in out


def test_convert_levels_extract(shell: Shell, exported: Path) -> None:
    status, out, err = shell(
        *("convert", str(exported), "--scheme", SCHEME, "--out", "net"),
        *("--budget", "macs=10000", "--budget", "params=1e6", "--format", "pt2,onnx"),
    )
    assert status == 0, err
    assert "macs=10000: level 1 (width 0.5)" in out
    assert "params=1e6: level 2 (width 1)" in out
    assert out.endswith("written to net\n")
    assert [line for line in err.splitlines() if not line.endswith(" ...")] == []
    files = {path.name for path in Path("net").iterdir()}
    levels = {f"level-{index}.{kind}" for index in (1, 2) for kind in ("pt2", "onnx")}
    assert files == {"net.safetensors", "report.json", "report.md"} | levels
    assert [path.name for path in shell.folder.iterdir()] == ["net"]

    net = anytimeify.load("net/net.safetensors")
    x = images(3)
    outputs = net(x)
    loaded = torch.export.load("net/level-1.pt2").module()
    torch.testing.assert_close(loaded(x), outputs.levels[1])
    session = onnxruntime.InferenceSession("net/level-2.onnx")
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), outputs.levels[2])
    report = json.loads(Path("net/report.json").read_text())
    assert [level["macs"] for level in report["levels"]] == [level.cost.macs for level in net.levels]
    assert Path("net/report.md").read_text() == net.report().to_markdown()

    status, out, _ = shell("levels", "net", "--json", "--measure", "cpu", "--batch-size", "2")
    listed = json.loads(out)
    assert (status, listed["scheme"]) == (0, SCHEME)
    assert [level["name"] for level in listed["levels"]] == ["width 0.25", "width 0.5", "width 1"]
    assert all(level["latency_ms"] > 0 for level in listed["levels"])
    status, out, _ = shell("levels", "net")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["level", "0", "1", "2"]
    Path("accuracies.json").write_text('{"width 0.5": 0.9, "width 1": 0.8}')
    scored = "--accuracies", "accuracies.json", "--plot", "levels.png"
    status, out, _ = shell("levels", "net", *scored)
    assert (status, "costs more and gives less than width 0.5" in out) == (0, True)
    assert Path("levels.png").is_file()
    status, out, _ = shell("bench", "net", "--no-alone", "--seconds", "0", "--batch-size", "2", "--json", *scored)
    assert (status, [row["batch_size"] for row in json.loads(out)["rows"]]) == (0, [2, 2, 2])
    assert shell("bench", "net/level-2.onnx").status == 1
    assert shell("report", "net", "--out", "net.html", "--model-explorer", "explorer").status == 0
    assert "<svg" in Path("net.html").read_text()
    assert Path("explorer/graph.json").is_file()
    assert "exists already" in shell.refuses("report", "net", "--out", "net.html")
    assert shell("report", "net", "--out", "net.html", "--accuracies", "accuracies.json", "--force").status == 0
    assert "accuracy</th>" in Path("net.html").read_text()
    Path("others.json").write_text('{"narrow": 0.5}')
    for command in (["levels", "net"], ["bench", "net"], ["report", "net", "--out", "new.html"]):
        refused = shell.refuses(*command, "--accuracies", "others.json")
        assert "'narrow' is not the name of a level" in refused
    assert shell("report", "net", "--out", "net.docx").status == 2

    assert shell("extract", "net", "--level", "-1", "--fold", "--out", "full.pt2").status == 0
    torch.testing.assert_close(torch.export.load("full.pt2").module()(x), outputs.levels[2], rtol=1e-4, atol=1e-5)
    assert shell("extract", "net/net.safetensors", "--budget", "macs=10000", "--out", "half.safetensors").status == 0
    assert "macs" in shell.refuses("extract", "net", "--budget", "macs=10", "--out", "none.pt2")
    assert "there is no level 7" in shell.refuses("extract", "net", "--level", "7", "--out", "none.pt2")
    for name in ("width 0.5", "0.5"):
        assert "level 1 (width 0.5)" in shell("extract", "net", "--level", name, "--out", f"{name}.pt2").out
    assert "there is no level 'narrow'" in shell.refuses("extract", "net", "--level", "narrow", "--out", "none.pt2")
    assert "exists already" in shell.refuses("extract", "net", "--level", "0", "--out", "full.pt2")


def test_convert_writes_every_level_without_a_budget_and_none_without_a_format(shell: Shell, exported: Path) -> None:
    assert shell("convert", str(exported), "--scheme", SCHEME, "--out", "plain", "--no-verify").status == 0
    assert {path.name for path in Path("plain").iterdir()} == {"net.safetensors", "report.json", "report.md"}
    options = "--scheme", SCHEME, "--out", "all", "--format", "safetensors"
    assert shell("convert", str(exported), *options).status == 0
    assert {path.name for path in Path("all").glob("level-*")} == {f"level-{index}.safetensors" for index in range(3)}


def test_a_taxonomy_and_a_consensus(shell: Shell, exported: Path) -> None:
    (shell.folder / "classes.csv").write_text("fine,coarse\na,x\nb,x\nc,y\nd,y\ne,y\n")
    options = ["--scheme", SCHEME, "--out", "net", "--taxonomy", "classes.csv", "--consensus", "average"]
    status, out, err = shell("convert", str(exported), *options)
    assert status == 0, err
    assert "consensus" in out
    assert "coarse" in out
    net = anytimeify.load(shell.folder / "net" / MODEL)
    assert net.taxonomy is not None
    assert net.taxonomy.sizes == (5, 2)
    extracting = ["extract", "net", "--level", "0", "--granularity", "coarse", "--out", "small.pt2"]
    assert shell(*extracting).status == 0
    small = torch.export.load(shell.folder / "small.pt2").module()
    assert small(images(2)).shape == (2, 2)
    assert "no granularity 'kind'" in shell.refuses(*extracting[:5], "kind", "--out", "other.pt2")
    (shell.folder / "classes.csv").write_text("fine,coarse\na,x\nb,y\n")
    assert "has 5 classes" in shell.refuses("convert", str(exported), *options[:3], "other", *options[4:])
    assert shell("convert", str(exported), *options[:3], "other", "--consensus", "majority").status == 2


def test_all_that_a_backbone_returns_and_its_constants(shell: Shell) -> None:
    options = ["--scheme", "nested-channels{widths=0.25,1}", "--constants", "scale", "--format", "pt2"]
    status, out, err = shell("convert", "models:two", "--out", "net", "--output", "all", *options)
    assert status == 0, err
    assert "every level computes with that of its own width" in " ".join(out.split())
    small = torch.export.load(shell.folder / "net" / "level-0.pt2").module()
    assert {name: found.shape for name, found in small(torch.randn(2, 4)).items()} == {"scores": (2, 3), "side": (2, 2)}
    assert shell("convert", "models:two", "--out", "side", "--output", "side", *options[:2]).status == 0
    assert anytimeify.load(shell.folder / "side" / MODEL)(torch.randn(2, 4), level=0).shape == (2, 2)
    assert "has no 'other'" in shell.refuses("convert", "models:two", "--out", "no", "--output", "other", *options[:2])
    assert shell("convert", "models:two", "--out", "no", "--constants", "grow", *options[:2]).status == 2


def test_factories_and_shapes(shell: Shell) -> None:
    options = "--scheme", SCHEME, "--input-shape", "3,3,6,6", "--dynamic-shapes", "none"
    assert shell("convert", "models:without_inputs", "--out", "net", *options).status == 0
    captured = anytimeify.load("net/net.safetensors").captured
    assert captured.batch is None
    assert captured.example_inputs[0].shape == (3, 3, 6, 6)


def test_inspect(shell: Shell) -> None:
    status, out, _ = shell("inspect", "models:residual")
    assert status == 0
    for word in ("Axis groups that may be narrowed, stream: 1", "an output of the model", "cut points", "stage"):
        assert word in out
    status, out, _ = shell("inspect", "models:residual", "--json")
    assert (status, json.loads(out)["name"]) == (0, "models:residual")
    assert "Cut points" in shell("inspect", "models:residual", "--all").out
    assert shell("inspect", "models:pinned").status == 0
    assert list(shell.folder.iterdir()) == []


def test_it_is_a_command(shell: Shell) -> None:
    """As a user runs it: the module, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "anytimeify"]
    version = subprocess.run([*command, "--version"], env=environment, capture_output=True, text=True, check=False)
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout == f"anytimeify {anytimeify.__version__}\n"


@pytest.mark.slow
def test_what_it_says_goes_to_the_standard_error() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "anytimeify", "levels", "nowhere"]
    missing = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "loading nowhere ...\nerror: nowhere does not exist\n"


# What is refused.


def convert(shell: Shell, source: str, *options: str, scheme: str = SCHEME) -> str:
    return shell.refuses("convert", source, "--scheme", scheme, "--out", "net", *options)


def test_missing_file(shell: Shell) -> None:
    assert "There is no file 'nowhere.pt2'" in convert(shell, "nowhere.pt2")
    assert "nowhere does not exist" in shell.refuses("levels", "nowhere")


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "empty", "other"])
def test_damaged_file(shell: Shell, exported: Path, damage: str) -> None:
    data = bytearray(exported.read_bytes())
    if damage == "corrupted":
        with zipfile.ZipFile(exported) as archive:
            entry = max(archive.infolist(), key=lambda info: info.file_size)
        data[entry.header_offset + entry.file_size // 2] ^= 0xFF
    contents: dict[str, bytes | bytearray] = {
        "truncated": data[: len(data) // 2],
        "corrupted": data,
        "empty": b"",
        "other": b"hello " * 100,
    }
    (shell.folder / "model.pt2").write_bytes(contents[damage])
    assert "'model.pt2' is damaged" in convert(shell, "model.pt2")


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "other"])
def test_damaged_net(shell: Shell, tmp_path: Path, damage: str) -> None:
    net = anytimeify.transform(Residual(), SCHEME, images(), verify=False)
    net.save(tmp_path / "whole")
    data = bytearray((tmp_path / "whole").read_bytes())
    data[20:40] = bytes(20)
    contents: dict[str, bytes | bytearray] = {
        "truncated": (tmp_path / "whole").read_bytes()[:-100],
        "corrupted": data,
        "other": b"hello",
    }
    (shell.folder / "net.safetensors").write_bytes(contents[damage])
    for command in (["levels", "."], ["extract", ".", "--level", "0", "--out", "small.pt2"]):
        assert "is not a saved anytime model, or is damaged" in shell.refuses(*command)


def test_wrong_extension(shell: Shell) -> None:
    (shell.folder / "model.txt").write_text("hello")
    message = convert(shell, "model.txt")
    assert "'model.txt' does not have the extension of a saved model" in message
    assert "model.pt2" in message


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_without_consent_runs_nothing(shell: Shell, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save(Touch(marker), shell.folder / "model.pt")
    message = convert(shell, "model.pt")
    assert "--trust-pickle" in message
    assert not marker.exists()
    convert(shell, "model.pt", "--trust-pickle")  # what it holds is no model either
    assert marker.exists()  # so the test above tests something


def test_inputs_of_the_wrong_shape(shell: Shell) -> None:
    message = convert(shell, "models:without_inputs", "--input-shape", "2,4,6,6")
    assert "Residual" in message
    assert "channels" in message
    assert "Pass example_inputs" in convert(shell, "models:without_inputs")


@pytest.mark.parametrize("shapes", [["2,4,6,6"], ["2,3,7,7"], ["2,3"], ["2,3,6,6", "2,3"]])
def test_inputs_that_an_exported_program_does_not_take(shell: Shell, exported: Path, shapes: list[str]) -> None:
    options = [part for shape in shapes for part in ("--input-shape", shape)]
    assert "The exported program takes" in convert(shell, str(exported), *options)


def test_control_flow_that_depends_on_data(shell: Shell) -> None:
    message = convert(shell, "models:branching")
    assert "depend on the values of tensors at models.py:" in message


def test_all_axes_pinned(shell: Shell) -> None:
    message = convert(shell, "models:pinned")
    assert "no axis of this model can be narrowed" in message
    assert "an output of the model" in message


@pytest.mark.parametrize("widths", ["0.5,0.25,1", "0.5,1.5", "0,1", "0.5,0.5,1", "0.25,0.5", "-1,1", "half,1"])
def test_widths_out_of_range_or_unsorted(shell: Shell, exported: Path, widths: str) -> None:
    assert "widths" in convert(shell, str(exported), scheme=f"nested-channels{{widths={widths}}}")


@pytest.mark.parametrize("scheme", ["nested-channel", "nested-channels{width=1}", "nested-channels{0.5}", ""])
def test_schemes_that_are_none(shell: Shell, exported: Path, scheme: str) -> None:
    assert f"'{scheme.partition('{')[0]}" in convert(shell, str(exported), scheme=scheme)


def test_budget_below_the_cheapest_level(shell: Shell, exported: Path) -> None:
    message = convert(shell, str(exported), "--budget", "macs=10")
    assert "no level fits the budget" in message
    assert "level 0 (width 0.25), costs macs" in message


def test_output_that_exists(shell: Shell) -> None:
    (shell.folder / "net").mkdir()
    assert "'net' exists already" in convert(shell, "nowhere.pt2")  # before any work, so before looking at the source
    (shell.folder / "file").write_text("precious")
    assert "exists already" in shell.refuses("convert", "x.pt2", "--scheme", SCHEME, "--out", "file")
    assert "There is no folder 'no'" in shell.refuses("convert", "x.pt2", "--scheme", SCHEME, "--out", "no/net")


def test_failure_while_writing_leaves_nothing(shell: Shell, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(FORMATS, "pt2", full)
    assert "cannot be written: [Errno 28] No space left" in convert(shell, str(exported), "--format", "pt2")


def test_a_factory_that_fails(shell: Shell) -> None:
    assert "'models:failing' raised ValueError: no such luck" in convert(shell, "models:failing")
    assert "'models' has no 'nothing'" in convert(shell, "models:nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_device_to_measure_on(shell: Shell) -> None:
    assert "torch sees 0 CUDA devices" in shell.refuses("levels", "net", "--measure", "cuda")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["transmogrify"],
        ["convert", "model.pt2", "--scheme", SCHEME],
        ["convert", "model.pt2", "--out", "net"],
        ["convert", "model.pt2", "--scheme", SCHEME, "--out", "net", "--format", "pt2,docx"],
        ["convert", "model.pt2", "--scheme", SCHEME, "--out", "net", "--budget", "macs"],
        ["convert", "model.pt2", "--scheme", SCHEME, "--out", "net", "--input-shape", "2x3"],
        ["convert", "model.pt2", "--scheme", SCHEME, "--out", "net", "--input-shape", "0,3"],
        ["convert", "model.pt2", "--scheme", SCHEME, "--out", "net", "--input-shape", "99999999999999,3,8,8"],
        ["convert", "model.pt2", "--scheme", SCHEME, "--out", "net", "--dynamic-shapes", "all"],
        ["convert", "x.onnx", "--scheme", SCHEME, "--out", "net", "--input-shape", "2,3", "--input", "x=2x3"],
        ["inspect", "x.onnx", "--input-shape", "2,3", "--input", "x=2x3"],
        ["export", "net", "--out", "net.pt2"],
        ["export", "net", "--out", "net.onnx", "--format", "pt2"],
        ["report", "net", "--out", "net.html", "--model-explorer", "net.html"],
        ["extract", "net", "--out", "small.pt2"],
        ["extract", "net", "--out", "small.pt2", "--level", "0", "--budget", "macs=1e6"],
        ["extract", "net", "--out", "small.txt", "--level", "0"],
        ["levels", "net", "--measure", "abacus"],
        ["levels", "net", "--runtime", "onnxruntime"],
        ["levels", "net", "--threads", "2"],
        ["levels", "net", "--batch-size", "2"],
        ["levels"],
        ["bench", "net", "--device", "abacus"],
        ["bench", "net", "--no-alone", "--against", "net"],
        ["report", "net", "--out", "net.html", "--threads", "2"],
        ["report", "net", "--out", "net.md", "--measure", "cpu"],
        ["report", "net", "--out", "net.json", "--accuracies", "accuracies.json"],
    ],
)
def test_bad_usage(shell: Shell, arguments: list[str]) -> None:
    status, out, err = shell(*arguments)
    assert status == 2
    assert "Traceback" not in out + err
    assert list(shell.folder.iterdir()) == []


def test_a_wrong_option_is_called_by_its_name(shell: Shell) -> None:
    assert "Invalid value for --device: 'abacus'" in shell("bench", "net", "--device", "abacus").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["levels", "net", "--measure", "cpu", "--plot", "a.txt"], "cannot draw a.txt: its suffix chooses"),
        (["levels", "net", "--measure", "cpu", "--plot", "no/a.png"], "There is no folder"),
        (["bench", "net", "--plot", "a.txt"], "cannot draw a.txt: its suffix chooses"),
        (["report", "net", "--out", "net.html", "--force", "--model-explorer", "other"], "holds no graph.json"),
        (["convert", "x.pt2", "--scheme", SCHEME, "--out", "other/file", "--force"], "'other/file' is a file: --force"),
        (["train", "run", "--data", "digits", "--out", "new"], "There is no file or folder 'run'. Check the path."),
        (["train", "x.pt2", "--data", "digits", "--out", "other", "--force"], "'other' holds no run: --force removes"),
        pytest.param(
            ["convert", "x.pt2", "--scheme", SCHEME, "--out", "net", "--budget", "latency_ms=9,device=cuda"],
            "latency cannot be measured on cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU"),
        ),
    ],
)
def test_what_cannot_be_written_or_measured_is_refused_before_any_work(
    shell: Shell, arguments: list[str], message: str
) -> None:
    """Before the model is looked for, which is not there."""
    (shell.folder / "other").mkdir()
    (shell.folder / "other" / "file").write_text("precious")
    assert message in shell.refuses(*arguments)


def test_a_fault_is_one_message_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OverflowError("too much\nof it")

    monkeypatch.setattr(papers, "entries", fail)
    message = shell.refuses("papers")
    assert message.startswith("error: internal error in anytimeify, OverflowError in test_cli.py:")
    assert message.endswith(": too much")
