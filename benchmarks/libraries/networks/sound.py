"""Networks that read sound: speakers, speech, separation, compression."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.libraries.networks.example import BATCH, Example, Factory, signal

__all__ = ["NETWORKS"]


def _speechbrain(name: str) -> Example:
    frames = torch.randn(BATCH, 40, 24)
    if name == "ECAPA_TDNN":
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

        model = ECAPA_TDNN(24, lin_neurons=16, channels=[32] * 4 + [96], attention_channels=16, se_channels=16)
        return Example(model, (frames,))
    if name == "Xvector":
        from speechbrain.lobes.models.Xvector import Xvector

        return Example(Xvector(in_channels=24, tdnn_channels=[32, 32, 32, 32, 64], lin_neurons=16), (frames,))
    if name == "ConformerEncoder":
        from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
        from speechbrain.nnet.attention import RelPosEncXL

        class Encoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.positions = RelPosEncXL(32)
                self.encoder = ConformerEncoder(2, d_model=32, d_ffn=64, nhead=4, kernel_size=7)

            def forward(self, x: Tensor) -> Any:
                return self.encoder(x, pos_embs=self.positions(x))[0]

        return Example(Encoder(), (torch.randn(BATCH, 20, 32),))
    raise KeyError(name)


def _torchaudio(name: str) -> Example:
    from torchaudio import models

    if name == "ConvTasNet":
        model = models.ConvTasNet(
            enc_num_feats=32, msk_num_feats=16, msk_num_hidden_feats=32, msk_num_layers=2, msk_num_stacks=2
        )
        return Example(model, (signal(400),))
    if name == "Conformer":
        model = models.Conformer(32, num_heads=4, ffn_dim=64, num_layers=2, depthwise_conv_kernel_size=7)
        return Example(model, (torch.randn(BATCH, 20, 32), torch.tensor([20, 15])))
    if name == "Wav2Letter":
        return Example(models.Wav2Letter(num_classes=8, input_type="mfcc", num_features=13), (signal(64, 13),))
    raise KeyError(name)


def _asteroid(name: str) -> Example:
    from asteroid import models

    sizes: dict[str, dict[str, Any]] = {
        "ConvTasNet": {"n_blocks": 2, "n_repeats": 2, "bn_chan": 16, "hid_chan": 32, "skip_chan": 16},
        "DPRNNTasNet": {"n_repeats": 2, "bn_chan": 16, "hid_size": 16, "chunk_size": 20},
        "SuDORMRFNet": {"num_blocks": 2, "bn_chan": 16, "upsampling_depth": 2},
    }
    model = getattr(models, name)(n_src=2, n_filters=32, **sizes[name])
    return Example(model, (signal(800),))


def _encodec() -> Example:
    from encodec.modules import SEANetDecoder, SEANetEncoder

    sizes: dict[str, Any] = {"dimension": 16, "n_filters": 8, "ratios": [4, 2], "lstm": 1}
    return Example(nn.Sequential(SEANetEncoder(**sizes), SEANetDecoder(**sizes)), (signal(640),))


NETWORKS: dict[str, Factory] = {
    **{f"speechbrain:{name}": partial(_speechbrain, name) for name in ("ECAPA_TDNN", "Xvector", "ConformerEncoder")},
    **{f"torchaudio:{name}": partial(_torchaudio, name) for name in ("ConvTasNet", "Conformer", "Wav2Letter")},
    **{f"asteroid:{name}": partial(_asteroid, name) for name in ("ConvTasNet", "DPRNNTasNet", "SuDORMRFNet")},
    "encodec:SEANet": _encodec,
}
