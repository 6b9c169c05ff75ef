"""Names in ONNX files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from anytimeify.storage.onnx_model import onnx_model, save_onnx  # noqa: E402


class Means(nn.Module):
    """Whose operations torch calls `mean` and `mean_1`, and whose weight is called `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x.mean((2, 3))
        return first * self.weight, (x - first[:, :, None, None]).square().mean((2, 3)) * self.weight


@pytest.mark.parametrize(
    ("given", "results"),
    [
        ("mean", ("a", "b")),
        ("weight", ("mean_1", "mean")),
        ("mean_1", ("mean", "weight")),
        ("x", ("mul", "mean_value")),
    ],
)
def test_inputs_and_results_have_their_names_whatever_has_them_inside(
    given: str, results: tuple[str, str], tmp_path: Path
) -> None:
    net, x = Means(), torch.randn(2, 4, 3, 3)
    save_onnx(
        onnx_model(torch.export.export(net, (x,)), "file", inputs=[given], outputs=results), tmp_path / "net.onnx"
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == [given]
    assert tuple(one.name for one in session.get_outputs()) == results
    for name, expected in zip(results, net(x), strict=True):
        (found,) = session.run([name], {given: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected.detach())
