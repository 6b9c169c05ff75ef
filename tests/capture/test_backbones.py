"""Real backbones, small: captured, turned into modules, and compared with themselves in both modes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify._torch import prepare_torchvision
from tests.capture.helpers import check, text

pytestmark = pytest.mark.zoo


def torchvision(name: str, **options: Any) -> nn.Module:
    prepare_torchvision()
    from torchvision import models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on initialisation
        return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]


def vision_transformer() -> nn.Module:
    prepare_torchvision()
    from torchvision import models

    model = models.VisionTransformer(32, 8, 2, 4, 32, 64, dropout=0.1, attention_dropout=0.1, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # zero as it comes
    result: nn.Module = model
    return result


def swin_transformer() -> nn.Module:
    prepare_torchvision()
    from torchvision.models.swin_transformer import SwinTransformer

    model: nn.Module = SwinTransformer([2, 2], 16, [1, 1], [2, 4], [7, 7], stochastic_depth_prob=0.2, num_classes=10)
    return model


def timm(name: str, **options: Any) -> nn.Module:
    prepare_torchvision()
    import timm as package

    return package.create_model(name, **options)


def transformers(name: str, config: str, **options: Any) -> nn.Module:
    prepare_torchvision()
    import transformers as package

    return getattr(package, name)(getattr(package, config)(**options))  # type: ignore[no-any-return]


BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 32,
}
SWIN = {"drop_path_rate": 0.2, "depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2), "img_size": 56}

BACKBONES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "resnet18": (lambda: torchvision("resnet18"), 64),
    "shufflenet": (lambda: torchvision("shufflenet_v2_x0_5"), 64),
    "mobilenet_v2": (lambda: torchvision("mobilenet_v2"), 64),
    "efficientnet_b0": (lambda: torchvision("efficientnet_b0"), 64),
    "densenet121": (lambda: torchvision("densenet121"), 64),
    "googlenet": (lambda: torchvision("googlenet", aux_logits=False), 64),
    "convnext": (lambda: torchvision("convnext_tiny"), 64),
    "vit": (vision_transformer, 32),
    "swin": (swin_transformer, 56),
    "timm resnet": (lambda: timm("test_resnet"), None),
    "timm vit": (lambda: timm("test_vit"), None),
    "timm convnext": (lambda: timm("test_convnext"), None),
    "timm byobnet": (lambda: timm("test_byobnet"), None),
    "timm nfnet, weight standardisation": (lambda: timm("test_nfnet"), None),
    "timm efficientnet, drop path": (lambda: timm("test_efficientnet", drop_path_rate=0.2, drop_rate=0.1), None),
    "timm swin, drop path": (lambda: timm("swin_tiny_patch4_window7_224", **SWIN), None),
    "timm regnet": (lambda: timm("regnetx_002"), 64),
    "timm halonet": (lambda: timm("halonet_h1"), None),
    "bert": (lambda: transformers("BertForSequenceClassification", "BertConfig", **BERT), None),
    "bert with a mask": (
        lambda: transformers("BertForSequenceClassification", "BertConfig", **BERT),
        {"input_ids": torch.arange(16).view(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)},
    ),
    "hf vit": (
        lambda: transformers(
            "ViTForImageClassification", "ViTConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, image_size=32, patch_size=8,
        ),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name: str) -> None:
    make, inputs = BACKBONES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the zoos say of themselves
        model = make()
    captured = check(model, torch.randn(2, 3, inputs, inputs) if isinstance(inputs, int) else inputs)
    assert captured.batch is not None
    assert not [note for note in captured.notes if "lost" in note]


def test_auxiliary_heads_of_training_are_dropped() -> None:
    """In train mode the model returns three predictions, in eval mode one; the dropout of the others is drawn too."""
    captured = check(torchvision("googlenet"), torch.randn(2, 3, 64, 64), training=False)
    assert any("3 outputs" in note for note in captured.notes)


def test_drop_path_of_transformers() -> None:
    """Drawn from other random numbers than the original, so only eval mode can be compared."""
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}
    model = transformers("ConvNextForImageClassification", "ConvNextConfig", drop_path_rate=0.3, **sizes)
    captured = check(model, training=False)
    assert "drop_path(" in text(captured.program)
    assert captured.notes == ()


def test_patch_dropout_is_lost_with_a_note() -> None:
    captured = check(timm("test_vit", patch_drop_rate=0.25), training=False)
    assert any("training-only behaviour was lost" in note for note in captured.notes)
