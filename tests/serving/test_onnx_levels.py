"""ONNX files served without torch, by several threads, and after a fork."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from anytimeify import AnytimeModel, ArgumentError, ArgumentValueError, ArtifactError
from anytimeify.runtime import Adaptive, AnytimeRunner
from anytimeify.storage.export import export_onnx
from tests.backbones import images
from tests.deploy.nets import SCHEMES, trained
from tests.source_files import ROOT


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnytimeModel, Path]:
    net, path = trained(SCHEMES[0]), tmp_path_factory.mktemp("net") / "net.onnx"
    net.export(path)
    return net, path


@pytest.fixture(scope="module")
def runner(case: tuple[AnytimeModel, Path]) -> AnytimeRunner:
    return AnytimeRunner(case[1], threads=1)


def test_levels_are_those_of_the_model(case: tuple[AnytimeModel, Path], runner: AnytimeRunner) -> None:
    net = case[0]
    assert [(one.name, one.number, one.macs) for one in runner.levels] == [
        (one.name, one.number, one.cost.macs) for one in net.levels
    ]
    for batch in (1, 3):
        x = images(batch)
        for level in net.levels:
            value = runner.predict(x.numpy(), level=level.name).value
            assert isinstance(value, np.ndarray)
            expected = net(x, level=level).detach()
            torch.testing.assert_close(torch.from_numpy(value), expected, rtol=1e-4, atol=1e-5)
            given = runner.predict(x, level=level).value  # tensors for tensors, and a level of the model
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_levels_are_measured(runner: AnytimeRunner) -> None:
    assert all(level.latencies[1].count >= 5 and level.latencies[1].median_ms > 0 for level in runner.levels)
    assert runner.predict(images(1), deadline_ms=1e9).level.index == 2
    assert runner.predict(images(1), deadline_ms=0).level.index == 0
    assert [one.level.index for one in runner.stream(images(1))] == [0, 1, 2]


def test_threads_share_a_runner(case: tuple[AnytimeModel, Path], runner: AnytimeRunner) -> None:
    x = images(8)
    expected = [case[0](x, level=level).detach().numpy() for level in range(3)]

    def ask(place: int) -> bool:
        value = runner.predict(x[place % 8 : place % 8 + 1].numpy(), level=place % 3).value
        return bool(np.allclose(value, expected[place % 3][place % 8], rtol=1e-4, atol=1e-5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(60)))


def test_requests_are_batched(case: tuple[AnytimeModel, Path], runner: AnytimeRunner) -> None:
    x = images(6)
    with Adaptive(runner, slo_ms=1e6, max_batch=4) as server:
        futures = [server.submit(sample.numpy()) for sample in x]
        values = np.stack([future.result(60).value for future in futures])
    assert sum(server.statistics().levels) == 6
    torch.testing.assert_close(torch.from_numpy(values), case[0](x, level=-1).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (images(1)[0], ArgumentValueError, "has the shape"),
        (images(1).double(), ArgumentValueError, "is of type float64: expected float32"),
        (images(1)[:, :2], ArgumentValueError, "has the shape"),
    ],
)
def test_wrong_inputs_are_refused(runner: AnytimeRunner, x: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runner.predict(x)


def test_other_files_are_refused(case: tuple[AnytimeModel, Path], tmp_path: Path) -> None:
    net, path = case
    with pytest.raises(ArtifactError, match="does not exist"):
        AnytimeRunner(tmp_path / "none.onnx")
    (tmp_path / "damaged.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"damaged\.onnx is damaged"):
        AnytimeRunner(tmp_path / "damaged.onnx")
    export_onnx(net.extract(0), images(), tmp_path / "one.onnx")
    with pytest.raises(ArtifactError, match=r"one\.onnx says nothing of levels: expected an ONNX file that net.export"):
        AnytimeRunner(tmp_path / "one.onnx")
    with pytest.raises(ArgumentError, match="device='tpu': this onnxruntime runs on cpu"):
        AnytimeRunner(path, device="tpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"what it says of its levels cannot be read \(JSONDecodeError"),
        ('{"format": 2}', "was written by a newer version of anytimeify, in format 2"),
        ('{"format": 1, "scheme": "", "batch": null, "levels": []}', "no levels"),
        ('{"format": 1, "scheme": "", "batch": null, "levels": [{"name": "a"}]}', "KeyError"),
        ('{"format": 1, "scheme": "", "batch": [1], "levels": []}', "ValueError"),
    ],
)
def test_damaged_descriptions_are_refused(
    case: tuple[AnytimeModel, Path], tmp_path: Path, text: str, message: str
) -> None:
    model = onnx.load(case[1])
    onnx.helper.set_model_props(model, {"anytimeify": text})
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ArtifactError, match=message):
        AnytimeRunner(tmp_path / "net.onnx")


WITHOUT_TORCH = """
import sys
if {blocked}:
    sys.modules["torch"] = None
import numpy as np
from anytimeify.runtime import Adaptive, AnytimeRunner
runner = AnytimeRunner({path!r}, threads=1)
x = np.zeros({shape}, np.float32)
assert runner.predict(x).level.index == 2
assert runner.predict(x, deadline_ms=0).level.index == 0
assert len(list(runner.stream(x))) == 3
with Adaptive(runner, slo_ms=1e6) as server:
    assert server.predict(x[0]).level.name == runner.levels[2].name
assert sys.modules.get("torch") is None
"""


@pytest.mark.parametrize("blocked", [False, True])
def test_torch_is_not_needed(case: tuple[AnytimeModel, Path], blocked: bool) -> None:
    code = WITHOUT_TORCH.format(blocked=blocked, path=str(case[1]), shape=tuple(images(1).shape))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FORKED = """
import os, sys
import numpy as np
from anytimeify.runtime import AnytimeRunner
runner = AnytimeRunner({path!r}, threads=2)
x = np.ones({shape}, np.float32)
expected = runner.predict(x).value
runner._runs._lock.acquire()  # as another thread may have, at that moment
child = os.fork()
if child == 0:
    same = np.allclose(runner.predict(x).value, expected, rtol=1e-4, atol=1e-5)
    os._exit(0 if same else 1)  # as multiprocessing ends its processes
_, status = os.waitpid(child, 0)
runner._runs._lock.release()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_goes_on(case: tuple[AnytimeModel, Path]) -> None:
    code = FORKED.format(path=str(case[1]), shape=tuple(images(1).shape))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_page_shows_what_works(case: tuple[AnytimeModel, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case[1].parent)
    x = images(1).numpy()
    shown: dict[str, object] = {"images": x, "image": x[0]}
    page = (ROOT / "docs" / "serving.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block.replace("slo_ms=50, max_batch", "slo_ms=1e6, max_batch"), shown)
    assert shown["level"] == 1  # of the last block, which plans
