"""Networks that read tables and series: tabular data, click-through rates, forecasts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.libraries.networks.example import BATCH, Example, Factory

__all__ = ["NETWORKS"]


def _rtdl(name: str) -> Example:
    import rtdl_revisiting_models as rtdl

    rows = torch.randn(BATCH, 12)
    if name == "MLP":
        return Example(rtdl.MLP(d_in=12, d_out=5, n_blocks=3, d_block=32, dropout=0.1), (rows,))
    if name == "ResNet":
        model = rtdl.ResNet(
            d_in=12, d_out=5, n_blocks=3, d_block=32, d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.0
        )
        return Example(model, (rows,))
    small: dict[str, Any] = {"n_blocks": 2, "d_block": 32, "attention_n_heads": 4, "attention_dropout": 0.1}
    model = rtdl.FTTransformer(
        n_cont_features=12, cat_cardinalities=[4, 7], d_out=5, ffn_d_hidden=64, ffn_d_hidden_multiplier=None,
        ffn_dropout=0.1, residual_dropout=0.0, **small,
    )  # fmt: skip
    return Example(model, (rows, torch.randint(0, 4, (BATCH, 2))))


def _deepctr(name: str) -> Example:
    from deepctr_torch import models
    from deepctr_torch.inputs import DenseFeat, SparseFeat

    columns = [*(SparseFeat(f"c{i}", 7, embedding_dim=4) for i in range(5)), *(DenseFeat(f"d{i}", 1) for i in range(3))]
    rows = torch.cat([torch.randint(0, 7, (BATCH, 5)).float(), torch.rand(BATCH, 3)], 1)
    model = getattr(models, name)(columns, columns, dnn_hidden_units=(32, 16))
    return Example(model, (rows,))


def _tabnet() -> Example:
    from pytorch_tabnet.tab_network import TabNet

    mask = torch.eye(12)  # no groups of features
    return Example(TabNet(12, 5, virtual_batch_size=128, group_attention_matrix=mask), (torch.randn(BATCH, 12),))


def _pykan() -> Example:
    from kan import KAN

    model = KAN(width=[4, 5, 3], grid=3, k=3, seed=0, auto_save=False, symbolic_enabled=False)
    model.save_act = False
    return Example(model, (torch.rand(BATCH, 4),))


class Windows(nn.Module):
    """A forecaster of neuralforecast, called with one window of a series."""

    def __init__(self, forecaster: nn.Module) -> None:
        super().__init__()
        self.forecaster = forecaster

    def forward(self, series: Tensor, mask: Tensor) -> Any:
        known = {"insample_y": series, "insample_mask": mask, "hist_exog": None, "futr_exog": None, "stat_exog": None}
        return self.forecaster(known)


def _neuralforecast(name: str) -> Example:
    from neuralforecast import models

    sizes: dict[str, dict[str, Any]] = {
        "NHITS": {"mlp_units": [[32, 32]] * 3},
        "NBEATS": {"mlp_units": [[32, 32]] * 3},
        "TFT": {"hidden_size": 16},
        "PatchTST": {"hidden_size": 16, "n_heads": 4, "linear_hidden_size": 32, "patch_len": 4, "stride": 2},
        "DLinear": {"moving_avg_window": 5},
        "TCN": {"encoder_hidden_size": 16, "context_size": 4, "decoder_hidden_size": 16},
        "TSMixer": {"n_series": 3, "ff_dim": 16},
        "iTransformer": {"n_series": 3, "hidden_size": 16, "n_heads": 4, "d_ff": 32},
    }
    model = getattr(models, name)(h=4, input_size=16, **sizes[name])
    shape = (BATCH, 16, sizes[name].get("n_series", 1))
    return Example(Windows(model), (torch.rand(shape), torch.ones(shape)))


NETWORKS: dict[str, Factory] = {
    **{f"rtdl-revisiting-models:{name}": partial(_rtdl, name) for name in ("MLP", "ResNet", "FTTransformer")},
    **{f"deepctr-torch:{name}": partial(_deepctr, name) for name in ("DeepFM", "xDeepFM", "DCN", "AutoInt", "WDL")},
    "pytorch-tabnet:TabNet": _tabnet,
    "pykan:KAN": _pykan,
    **{
        f"neuralforecast:{name}": partial(_neuralforecast, name)
        for name in ("NHITS", "NBEATS", "TFT", "PatchTST", "DLinear", "TCN", "TSMixer", "iTransformer")
    },
}
