"""Networks that read images: detection, segmentation, super-resolution, diffusion, classification."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.libraries.networks.example import BATCH, Example, Factory, image, tokens

__all__ = ["NETWORKS"]


def _ultralytics(name: str) -> Example:
    from ultralytics import YOLO

    return Example(YOLO(f"{name}.yaml").model, (image(),))


def _segmentation(name: str) -> Example:
    import segmentation_models_pytorch as smp

    encoder: dict[str, Any] = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 5}
    return Example(getattr(smp, name)(**encoder), (image(),))


def _diffusers_image(name: str) -> Example:
    import diffusers

    blocks: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    step = torch.tensor([10, 500])
    if name == "UNet2DModel":
        model = diffusers.UNet2DModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **blocks,
        )
        return Example(model, {"sample": image(16), "timestep": step})
    if name == "UNet2DConditionModel":
        model = diffusers.UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            **blocks,
        )
        text = torch.randn(BATCH, 7, 32)
        return Example(model, {"sample": image(16, 4), "timestep": step, "encoder_hidden_states": text})
    if name == "AutoencoderKL":
        model = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
        )
        return Example(model, (image(32),))
    if name == "DiTTransformer2DModel":
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=3, sample_size=8,
            num_embeds_ada_norm=10, norm_num_groups=8,
        )  # fmt: skip
        given = {"hidden_states": image(8, 4), "timestep": step, "class_labels": torch.tensor([1, 7])}
        return Example(model, given)
    raise KeyError(name)


def _spandrel(name: str) -> Example:
    if name == "SwinIR":
        from spandrel.architectures.SwinIR import SwinIR

        small: dict[str, Any] = {
            "depths": [2, 2],
            "embed_dim": 24,
            "num_heads": [4, 4],
            "window_size": 4,
            "mlp_ratio": 2,
        }
        return Example(SwinIR(img_size=16, upscale=2, upsampler="pixelshuffledirect", **small), (image(16),))
    if name == "HAT":
        from spandrel.architectures.HAT import HAT

        small = {"depths": (2, 2), "embed_dim": 24, "num_heads": (4, 4), "window_size": 4, "mlp_ratio": 2}
        return Example(
            HAT(img_size=16, upscale=2, compress_ratio=3, squeeze_factor=8, num_feat=16, **small), (image(16),)
        )
    if name == "RRDBNet":
        from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

        return Example(RRDBNet(in_nc=3, out_nc=3, num_filters=16, num_blocks=2, scale=2), (image(16),))
    if name == "Compact":
        from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

        return Example(SRVGGNetCompact(num_feat=16, num_conv=4, upscale=2), (image(16),))
    if name == "DAT":
        from spandrel.architectures.DAT import DAT

        return Example(
            DAT(img_size=16, split_size=[4, 4], depth=[2], embed_dim=24, num_heads=[4], expansion_factor=2, upscale=2),
            (image(16),),
        )
    raise KeyError(name)


def _vit_pytorch(name: str) -> Example:
    sizes: dict[str, Any] = {"num_classes": 5, "image_size": 32, "patch_size": 8, "dim": 32, "depth": 3}
    heads: dict[str, Any] = {"heads": 4, "mlp_dim": 64, "dim_head": 8}
    if name == "ViT":
        from vit_pytorch import ViT

        return Example(ViT(**sizes, **heads), (image(32),))
    if name == "SimpleViT":
        from vit_pytorch import SimpleViT

        return Example(SimpleViT(**sizes, **heads), (image(32),))
    if name == "DeepViT":
        from vit_pytorch.deepvit import DeepViT

        return Example(DeepViT(**sizes, **heads), (image(32),))
    if name == "CaiT":
        from vit_pytorch.cait import CaiT

        return Example(CaiT(**sizes, **heads, cls_depth=1), (image(32),))
    if name == "CCT":
        from vit_pytorch.cct import CCT

        model = CCT(
            img_size=32, embedding_dim=32, n_conv_layers=1, kernel_size=3, stride=2, padding=1, num_layers=3,
            num_heads=4, mlp_ratio=2, num_classes=5,
        )  # fmt: skip
        return Example(model, (image(32),))
    if name == "MaxViT":
        from vit_pytorch.max_vit import MaxViT

        model = MaxViT(num_classes=5, dim_conv_stem=16, dim=16, dim_head=8, depth=(1, 1), window_size=4)
        return Example(model, (image(32),))
    raise KeyError(name)


def _kornia(name: str) -> Example:
    if name == "VisionTransformer":
        from kornia.models.vit import VisionTransformer

        model = VisionTransformer(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4)
        return Example(model, (image(32),))
    if name == "HardNet":
        from kornia.feature import HardNet

        return Example(HardNet(pretrained=False), (image(32, 1),))
    if name == "TinyViT":
        from kornia.models.tiny_vit import TinyViT

        small: dict[str, Any] = {"embed_dims": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 4]}
        return Example(TinyViT(img_size=64, num_classes=5, window_sizes=[2, 2, 2, 2], **small), (image(),))
    raise KeyError(name)


def _open_clip() -> Example:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    seen = CLIPVisionCfg(layers=3, width=32, head_width=8, patch_size=8, image_size=32)
    read = CLIPTextCfg(context_length=16, vocab_size=64, width=32, heads=4, layers=3)
    return Example(CLIP(embed_dim=16, vision_cfg=seen, text_cfg=read), (image(32), tokens()))


def _efficientnet() -> Example:
    from efficientnet_pytorch import EfficientNet

    return Example(EfficientNet.from_name("efficientnet-b0", num_classes=5, image_size=64), (image(),))


NETWORKS: dict[str, Factory] = {
    **{
        f"ultralytics:{name}": partial(_ultralytics, name)
        for name in ("yolo11n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolo11n-cls")
    },
    **{
        f"segmentation-models-pytorch:{name}": partial(_segmentation, name)
        for name in ("Unet", "FPN", "DeepLabV3Plus", "MAnet")
    },
    **{
        f"diffusers:{name}": partial(_diffusers_image, name)
        for name in ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "AutoencoderKL")
    },
    **{f"spandrel:{name}": partial(_spandrel, name) for name in ("SwinIR", "HAT", "RRDBNet", "Compact", "DAT")},
    **{
        f"vit-pytorch:{name}": partial(_vit_pytorch, name)
        for name in ("ViT", "SimpleViT", "DeepViT", "CaiT", "CCT", "MaxViT")
    },
    **{f"kornia:{name}": partial(_kornia, name) for name in ("VisionTransformer", "HardNet", "TinyViT")},
    "open-clip-torch:CLIP": _open_clip,
    "efficientnet-pytorch:EfficientNet": _efficientnet,
}
