"""Networks that read tokens: languages, proteins."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.libraries.networks.example import BATCH, Example, Factory, image, tokens

__all__ = ["NETWORKS"]


def _x_transformers(name: str) -> Example:
    import torch
    from x_transformers import (
        ContinuousTransformerWrapper,
        Decoder,
        Encoder,
        TransformerWrapper,
        ViTransformerWrapper,
        XTransformer,
    )

    sizes: dict[str, Any] = {"dim": 32, "depth": 3, "heads": 4, "attn_dim_head": 8}
    words: dict[str, Any] = {"num_tokens": 64, "max_seq_len": 16}
    modern: dict[str, Any] = {"rotary_pos_emb": True, "use_rmsnorm": True, "ff_glu": True, "ff_swish": True}
    if name == "decoder":
        return Example(TransformerWrapper(**words, attn_layers=Decoder(**sizes)), (tokens(),))
    if name == "decoder-rotary":
        return Example(TransformerWrapper(**words, attn_layers=Decoder(**sizes, **modern)), (tokens(),))
    if name == "encoder":
        return Example(TransformerWrapper(**words, attn_layers=Encoder(**sizes)), (tokens(),))
    if name == "continuous":
        model = ContinuousTransformerWrapper(dim_in=6, dim_out=5, max_seq_len=16, attn_layers=Encoder(**sizes))
        return Example(model, (torch.randn(BATCH, 16, 6),))
    if name == "ViT":
        model = ViTransformerWrapper(image_size=32, patch_size=8, num_classes=5, attn_layers=Encoder(**sizes))
        return Example(model, (image(32),))
    if name == "XTransformer":
        half: dict[str, Any] = {"num_tokens": 64, "depth": 3, "heads": 4, "max_seq_len": 16, "attn_dim_head": 8}
        model = XTransformer(
            dim=32, **{f"{side}_{key}": value for side in ("enc", "dec") for key, value in half.items()}
        )
        return Example(model, (tokens(), tokens()))
    raise KeyError(name)


def _performer(name: str) -> Example:
    import torch
    from performer_pytorch import Performer, PerformerLM

    sizes: dict[str, Any] = {"dim": 32, "depth": 3, "heads": 4, "dim_head": 8, "nb_features": 16}
    if name == "Performer":
        return Example(Performer(**sizes), (torch.randn(BATCH, 16, 32),))
    return Example(PerformerLM(num_tokens=64, max_seq_len=16, **sizes), (tokens(),))


def _esm(name: str) -> Example:
    import esm
    from esm.model.esm2 import ESM2

    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    model = ESM2(num_layers=3, embed_dim=64, attention_heads=4, alphabet=alphabet, token_dropout=name == "ESM2-dropout")
    return Example(model, (tokens(12, 24),))


def _peft() -> Example:
    import peft
    import torch

    body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 5))
    adapted = peft.get_peft_model(body, peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["0", "2"]))
    return Example(adapted.base_model.model, (torch.randn(BATCH, 16),))


NETWORKS: dict[str, Factory] = {
    **{
        f"x-transformers:{name}": partial(_x_transformers, name)
        for name in ("decoder", "decoder-rotary", "encoder", "continuous", "ViT", "XTransformer")
    },
    **{f"performer-pytorch:{name}": partial(_performer, name) for name in ("Performer", "PerformerLM")},
    **{f"fair-esm:{name}": partial(_esm, name) for name in ("ESM2", "ESM2-dropout")},
    "peft:LoRA": _peft,
}
