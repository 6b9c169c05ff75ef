"""The trained classifier of rapidocr, from its file to answers of the server."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("starlette")

from PIL import Image
from starlette.testclient import TestClient

from anytimeify.runtime import Adaptive, AnytimeRunner
from examples.server.__main__ import images_of
from examples.server.app import create_app
from examples.text_direction import Lines, accuracies, classifier, fine_tune, narrowed, served
from examples.text_lines import TESTING, TRAINING

pytestmark = pytest.mark.slow


def test_a_trained_classifier_is_narrowed_fine_tuned_exported_and_served(tmp_path: Path) -> None:
    try:
        original = classifier(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("the wheel of rapidocr-onnxruntime cannot be downloaded")
    training, testing = Lines.drawn(2_000, TRAINING, seed=0), Lines.drawn(400, TESTING, seed=1)
    net = narrowed(original, training)
    converted = accuracies(net, testing)
    assert converted[-1] > 80  # as it was trained
    assert max(converted[:-1]) < 65  # narrow widths guess
    fine_tune(net, training, 100)
    tuned = accuracies(net, testing)
    assert tuned[-1] > 80
    assert tuned[2] > converted[2] + 10
    assert all(one > before for one, before in zip(tuned[:-1], converted, strict=False))
    path = tmp_path / "levels.onnx"
    net.export(path)
    runner = AnytimeRunner(path, threads=1)
    assert served(runner, testing) == pytest.approx(tuned, abs=0.4)  # of 400 lines, one
    images = images_of(runner.backend.inputs, mean=(0.5,) * 3, std=(0.5,) * 3)
    with TestClient(create_app(Adaptive(runner, slo_ms=10_000), images)) as client:
        for x in testing.images[:20]:
            pixels = ((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            answer = client.post("/predict", content=file.getvalue(), headers={"content-type": "image/png"}).json()
            expected = net(x[None], level=-1)[0].detach()
            assert answer["level"]["name"] == "width 1"
            torch.testing.assert_close(torch.tensor(*answer["outputs"].values()), expected, atol=0.02, rtol=0)
    assert np.isfinite(expected.numpy()).all()
