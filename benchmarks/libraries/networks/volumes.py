"""Networks that read volumes, of medical images."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.libraries.networks.example import Example, Factory, volume

__all__ = ["NETWORKS"]


def _monai(name: str) -> Example:
    from monai.networks import nets

    channels: dict[str, Any] = {"in_channels": 1, "out_channels": 2}
    kinds: dict[str, dict[str, Any]] = {
        "UNet": {"spatial_dims": 3, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2},
        "UNETR": {"img_size": 32, "feature_size": 8, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
        "VNet": {},
        "DynUNet": {
            "spatial_dims": 3, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
            "filters": [8, 16, 32], "res_block": True,
        },
        "SegResNet": {"init_filters": 8, "blocks_down": (1, 2, 2), "blocks_up": (1, 1)},
        "SwinUNETR": {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "window_size": 4},
        "AttentionUnet": {"spatial_dims": 3, "channels": (8, 16, 32), "strides": (2, 2)},
    }  # fmt: skip
    return Example(getattr(nets, name)(**channels, **kinds[name]), (volume(64 if name == "SwinUNETR" else 32),))


def _nnunet(name: str) -> Example:
    from dynamic_network_architectures.architectures import unet

    blocks = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}[name]
    model = getattr(unet, name)(
        input_channels=1, n_stages=3, features_per_stage=(8, 16, 32), conv_op=nn.Conv3d, kernel_sizes=3,
        strides=(1, 2, 2), **{blocks: 1}, num_classes=2, n_conv_per_stage_decoder=1, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    return Example(model, (volume(16),))


NETWORKS: dict[str, Factory] = {
    **{
        f"monai:{name}": partial(_monai, name)
        for name in ("UNet", "UNETR", "VNet", "DynUNet", "SegResNet", "SwinUNETR", "AttentionUnet")
    },
    **{
        f"dynamic-network-architectures:{name}": partial(_nnunet, name)
        for name in ("PlainConvUNet", "ResidualEncoderUNet")
    },
}
