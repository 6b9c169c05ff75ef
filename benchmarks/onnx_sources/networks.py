"""Networks that are exported, and files of other people's packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import anytimeify

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

__all__ = [
    "FILES",
    "NETWORKS",
    "Positional",
    "Wheel",
    "compare",
    "download",
    "network",
]


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]  # of torchvision


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10)  # type: ignore[no-any-return]  # of torchvision


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, **options)


_TINY: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def _bert() -> nn.Module:
    import transformers

    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=32, **_TINY)
    return transformers.BertForSequenceClassification(config)


def _distilbert() -> nn.Module:
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=60, max_position_embeddings=32, dim=32, hidden_dim=64, n_layers=2, n_heads=4
    )
    return transformers.DistilBertForSequenceClassification(config)


def _vit() -> nn.Module:
    import transformers

    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **_TINY))


def _images(size: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, 3, size, size),)


def _tokens() -> tuple[Tensor, ...]:
    return torch.randint(0, 60, (2, 12)), torch.ones(2, 12, dtype=torch.int64)


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "torchvision resnet18": (lambda: _torchvision("resnet18"), _images(64)),
    "torchvision mobilenet_v3_small": (lambda: _torchvision("mobilenet_v3_small"), _images(64)),
    "torchvision efficientnet_b0": (lambda: _torchvision("efficientnet_b0"), _images(64)),
    "torchvision densenet121": (lambda: _torchvision("densenet121"), _images(64)),
    "torchvision shufflenet_v2_x0_5": (lambda: _torchvision("shufflenet_v2_x0_5"), _images(64)),
    "torchvision regnet_y_400mf": (lambda: _torchvision("regnet_y_400mf"), _images(64)),
    "torchvision Swin of two stages": (_swin, _images(32)),
    "timm convnext_atto": (lambda: _timm("convnext_atto"), _images(64)),
    "timm vit_tiny_patch16_224": (lambda: _timm("vit_tiny_patch16_224", img_size=64), _images(64)),
    "timm deit_tiny_patch16_224": (lambda: _timm("deit_tiny_patch16_224", img_size=64), _images(64)),
    "transformers BERT": (_bert, _tokens),
    "transformers DistilBERT": (_distilbert, _tokens),
    "transformers ViT": (_vit, _images(32)),
}
"""How a network is made, and its inputs."""


@dataclass(frozen=True)
class Wheel:
    """A file in a package on PyPI, and the sizes of its inputs."""

    package: str
    member: str
    inputs: Mapping[str, Any]


FILES = (
    Wheel("rapidocr_onnxruntime==1.4.4", "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (2, 3, 48, 192)}),
    Wheel("rapidocr_onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", {"x": (2, 3, 64, 96)}),
    Wheel("rapidocr_onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", {"x": (2, 3, 48, 160)}),
    Wheel("rapidocr==3.10.0", "PP-OCRv6_det_small.onnx", {"x": (2, 3, 64, 96)}),
    Wheel("rapidocr==3.10.0", "PP-OCRv6_rec_small.onnx", {"x": (2, 3, 48, 160)}),
    Wheel("magika==1.0.3", "standard_v3_3/model.onnx", {}),
    Wheel("silero_vad==6.2.3", "silero_vad.onnx", {"input": (3, 576), "state": (2, 3, 128), "sr": 16000}),
    Wheel("silero_vad==6.2.3", "silero_vad_16k_sequence.onnx", {"input": (5, 576)}),
    Wheel("silero_vad==6.2.3", "silero_vad_op18_ifless.onnx", {"input": (3, 576), "sr": 16000}),
    Wheel("basic_pitch==0.4.0", "icassp_2022/nmp.onnx", {}),
)


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with random weights and running statistics of its own, in eval mode."""
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    model, examples = make(), inputs()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]  # it tracks them
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval(), examples


class Positional(nn.Module):
    """A network called by position, that returns its prediction."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.model(*inputs)
        return found if isinstance(found, Tensor) else found.logits


def compare(
    file: Path, inputs: Mapping[str, Any] | None = None, model: nn.Module | None = None
) -> tuple[anytimeify.Source, float]:
    """A file as a source, and the largest difference of its outputs to onnxruntime's, relative to the largest element;
    of an output below 1, absolute. With the network that the file was written from also to that one's."""
    import onnxruntime

    source = anytimeify.source(file, inputs=inputs or {})
    assert isinstance(source.model, nn.Module)
    training = source.model.training
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options)
    examples = iter(source.example_inputs.args)
    feed = {
        one.name: np.array((inputs or {})[one.name], np.int64) if one.shape == [] else next(examples).numpy()
        for one in session.get_inputs()
    }
    with torch.no_grad():
        found = source.model.eval()(*source.example_inputs.args)
        native = [] if model is None else [Positional(model)(*source.example_inputs.args).numpy()]
    source.model.train(training)
    listed = [one.numpy() for one in (found.values() if isinstance(found, dict) else [found])]
    gaps = [_gap(one, other) for one, other in zip(listed, session.run(None, feed), strict=True)]
    return source, max(*gaps, *(_gap(listed[0], other) for other in native), 0.0)


def _gap(found: Array, expected: Array) -> float:
    """The largest difference, relative to the largest element; of probabilities, which onnxruntime computes with an
    absolute precision, absolute."""
    share = expected.min() >= 0 and expected.max() <= 1
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1.0 if share else 0.0))


def download(wheel: Wheel, folder: Path) -> Path:
    """The file of a package, which pip downloads; `subprocess.CalledProcessError` where it cannot."""
    package = wheel.package.partition("==")[0]
    if not list(folder.glob(f"{package}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), wheel.package]
        subprocess.run(command, check=True, capture_output=True)
    (archive,) = folder.glob(f"{package}-*.whl")
    with zipfile.ZipFile(archive) as opened:
        member = next(name for name in opened.namelist() if name.endswith("/" + wheel.member))
        return Path(opened.extract(member, folder))
