"""Models and archives served by torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from anytimeify import ArgumentError, ArtifactError
from anytimeify.runtime import Adaptive, AnytimeRunner
from anytimeify.storage.export import export_pt2
from tests.backbones import images
from tests.deploy.nets import SCHEMES, levels_of, trained


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[2], SCHEMES[6], SCHEMES[7]])
def test_a_model_its_file_and_its_archive_give_the_same(scheme: str, tmp_path: Path) -> None:
    net, x = trained(scheme), images(3)
    net.save(tmp_path / "net.safetensors")
    net.export(tmp_path / "net.pt2", "pt2")
    for source in (net, tmp_path / "net.safetensors", tmp_path, tmp_path / "net.pt2"):
        runner = AnytimeRunner(source, warm_up=False)
        assert [level.name for level in runner.levels] == [net.levels[index].name for index in levels_of(net)]
        for level, index in zip(runner.levels, levels_of(net), strict=True):
            assert level.macs == net.levels[index].cost.macs
            value = runner.predict(x, level=level).value
            torch.testing.assert_close(value, net(x, level=index).detach(), rtol=1e-4, atol=1e-5)


def test_a_resumable_model_streams_what_is_new() -> None:
    net, x = trained(SCHEMES[2]), images(2)
    assert net.resumable
    runner = AnytimeRunner(net)
    stream = runner.stream(x)
    first = next(stream)
    assert not torch.is_inference_mode_enabled()  # between the steps all is as it was
    torch.testing.assert_close(first.value, net(x, level=0).detach())
    assert [one.level.index for one in stream] == [1, 2]
    assert [one.level.index for one in runner.stream(x, deadline_ms=0)] == [0]


def test_arrays_are_taken() -> None:
    net, x = trained(SCHEMES[0]), images(2)
    value = AnytimeRunner(net, warm_up=False).predict(x.numpy(), level=0).value
    torch.testing.assert_close(value, net(x, level=0).detach())


def test_requests_are_batched() -> None:
    net, x = trained(SCHEMES[0]), images(5)
    with Adaptive(AnytimeRunner(net), slo_ms=1e6, max_batch=4) as server:
        values = torch.stack([future.result(60).value for future in [server.submit(sample) for sample in x]])
    torch.testing.assert_close(values, net(x, level=-1).detach(), rtol=1e-4, atol=1e-5)


def test_models_serve_in_eval_mode() -> None:
    net = trained(SCHEMES[0])
    runner = AnytimeRunner(net)
    net.train()
    with pytest.raises(ArgumentError, match=r"in train mode: call net\.eval\(\)"):
        runner.predict(images(1))


def test_models_stay_where_they_are() -> None:
    with pytest.raises(ArgumentError, match="device='cuda': the model is on cpu"):
        AnytimeRunner(trained(SCHEMES[0]), device="cuda")
    with pytest.raises(ArgumentError, match="is run by backend='torch'"):
        AnytimeRunner(trained(SCHEMES[0]), backend="onnxruntime")


def test_archives_of_others_are_refused(tmp_path: Path) -> None:
    export_pt2(trained(SCHEMES[0]).extract(0), images(), tmp_path / "one.pt2")
    with pytest.raises(ArtifactError, match=r"one\.pt2 says nothing of levels"):
        AnytimeRunner(tmp_path / "one.pt2")
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ArtifactError, match=r"text\.pt2 is damaged"):
        AnytimeRunner(tmp_path / "text.pt2")
    with pytest.raises(ArtifactError, match="does not exist"):
        AnytimeRunner(tmp_path / "none.safetensors")


def test_archives_that_could_run_code_need_consent(tmp_path: Path) -> None:
    net, path = trained(SCHEMES[0]), tmp_path / "net.pt2"
    net.export(path, "pt2")
    trusted = AnytimeRunner(path, trust_pickle=True, warm_up=False).predict(images(1), level=1).value
    torch.testing.assert_close(trusted, net(images(1), level=1).detach())
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/aotinductor/model/library.so", b"code")
    with pytest.raises(ArtifactError, match=r"library.so.*trust_pickle=True"):
        AnytimeRunner(path)
