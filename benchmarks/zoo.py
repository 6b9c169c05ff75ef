"""Backbones with random weights, by name: `timm:NAME`, `torchvision:NAME` and tiny `hf:NAME` of transformers.

`build("hf:bert")` gives a model and example inputs for it. Nothing is downloaded. `package.module:factory` names a
function of one's own that returns the pair.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify._torch import prepare_torchvision

__all__ = ["TRANSFORMERS", "Example", "build", "catalogue", "family"]

Example = tuple[nn.Module, Any]
BATCH = 2


def build(name: str, input_size: Sequence[int] | None = None) -> Example:
    """The model that a name stands for, in train mode, and example inputs: a tuple or a mapping."""
    kind, _, rest = name.partition(":")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the zoos say of themselves
        if kind == "timm":
            return _timm(rest, input_size)
        if kind == "torchvision":
            return _torchvision(rest, input_size)
        if kind == "hf":
            return TRANSFORMERS[rest]()
        example: Example = getattr(importlib.import_module(kind), rest)()
        return example


def catalogue(kind: str) -> list[str]:
    """Every name behind a prefix, smaller models first where that is known."""
    if kind == "hf":
        return list(TRANSFORMERS)
    prepare_torchvision()
    if kind == "timm":
        import timm

        return list(timm.list_models())
    from torchvision import models

    def parameters(name: str) -> int:
        weights = list(models.get_model_weights(name))
        return min((int(one.meta["num_params"]) for one in weights), default=0)

    # The quantised ones are float networks of the same architectures until they are converted.
    names = [name for name in models.list_models() if not name.startswith("quantized_")]
    return sorted(names, key=parameters)


def family(name: str) -> str:
    """What a name is listed under where no list says it."""
    kind, _, rest = name.partition(":")
    if kind == "torchvision":
        prepare_torchvision()
        from torchvision import models

        task: str = models.get_model_builder(rest).__module__.removeprefix("torchvision.models.").partition(".")[0]
        return task if task in _TASKS else "classification"
    return KINDS.get(rest, "") if kind == "hf" else ""


_TASKS = frozenset({"detection", "segmentation", "video", "optical_flow"})


def _image(*size: int) -> tuple[Tensor]:
    return (torch.randn(BATCH, *size),)


def _timm(name: str, input_size: Sequence[int] | None) -> Example:
    prepare_torchvision()
    import timm

    told: Any = timm.get_pretrained_cfg(name)
    own = tuple(told.input_size) if told else None
    other = input_size is not None and own is not None and tuple(input_size) != own
    options: dict[str, Any] = {"img_size": input_size[-1]} if input_size and other and told.fixed_input_size else {}
    model: Any = timm.create_model(name, pretrained=False, **options)
    return model, _image(*(input_size or model.pretrained_cfg["input_size"]))


# torchvision ----------------------------------------------------------------------------------------------------------


class BeforeBoxes(nn.Module):
    """A detector up to its predictions for every anchor, or proposals in a two-stage one, on a batch of equal images.

    What follows selects boxes: sizes that depend on values, and torchvision's compiled operators."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, images: Tensor) -> Tensor:
        found = self.backbone(images)
        heads = self.head(list(found.values()))
        parts = list(heads.values()) if isinstance(heads, dict) else [one for level in heads for one in level]
        return torch.cat([part.flatten(1) for part in parts], 1)


class LastFlow(nn.Module):
    """RAFT with few refinements, returning the last one."""

    def __init__(self, raft: nn.Module) -> None:
        super().__init__()
        self.raft = raft

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        flow: Tensor = self.raft(first, second, num_flow_updates=3)[-1]
        return flow


_CLIPS = {"s3d": (3, 16, 224, 224), "mvit_v1_b": (3, 16, 224, 224), "mvit_v2_s": (3, 16, 224, 224)}


def _torchvision(name: str, input_size: Sequence[int] | None) -> Example:
    prepare_torchvision()
    from torchvision import models

    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    options: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in accepted else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # a minute of scipy
    model = models.get_model(name, weights=None, **options)
    task = family(f"torchvision:{name}")
    if task == "detection":
        return BeforeBoxes(model), _image(*(input_size or (3, 320, 320)))
    if task == "optical_flow":
        size = tuple(input_size or (3, 128, 128))
        return LastFlow(model), (*_image(*size), *_image(*size))
    if task == "video":
        return model, _image(*(input_size or _CLIPS.get(name, (3, 16, 112, 112))))
    large = sum(parameter.numel() for parameter in model.parameters()) > 60e6 and not name.startswith("vit")
    side = 299 if name == "inception_v3" else 128 if large else 224
    return model, _image(*(input_size or (3, side, side)))


# transformers ---------------------------------------------------------------------------------------------------------

WORDS = 96
LENGTH = 12


def _tokens() -> Tensor:
    return torch.randint(3, WORDS, (BATCH, LENGTH))


def _text() -> dict[str, Any]:
    return {"input_ids": _tokens(), "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64)}


def _causal() -> dict[str, Any]:
    return {"input_ids": _tokens(), "use_cache": False}


def _pair() -> dict[str, Any]:
    return {"input_ids": _tokens(), "decoder_input_ids": _tokens()[:, :8], "use_cache": False}


def _pixels(side: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(BATCH, 3, side, side)}


def _samples() -> dict[str, Any]:
    return {"input_values": torch.randn(BATCH, 1600)}


def _spectrum() -> dict[str, Any]:
    return {"input_values": torch.randn(BATCH, 64, 16)}


def _whisper() -> dict[str, Any]:
    return {"input_features": torch.randn(BATCH, 16, 40), "decoder_input_ids": _tokens()[:, :8], "use_cache": False}


def _model(name: str, inputs: Callable[[], dict[str, Any]], config: str = "", **options: Any) -> Callable[[], Example]:
    """A factory; the configuration's class is found by the model's name unless it is given."""

    def make() -> Example:
        prepare_torchvision()
        import transformers

        kind = getattr(transformers, name)
        made = getattr(transformers, config) if config else kind.config_class
        model = kind(made(**options))
        model.train()
        return model, inputs()

    return make


_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
    "num_labels": 5,
    **_IDS,
}
_DECODER: dict[str, Any] = {key: value for key, value in _ENCODER.items() if key != "num_labels"}
_GROUPED: dict[str, Any] = {**_DECODER, "num_attention_heads": 8, "num_key_value_heads": 4}
_BART: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 1,
    **_IDS,
}
_T5: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_VIT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8, "num_labels": 5,
}  # fmt: skip
_SPEECH: dict[str, Any] = {
    **_ENCODER, "conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2, "classifier_proj_size": 32,
    "apply_spec_augment": False, "layerdrop": 0.0,
}  # fmt: skip
_STAGES: dict[str, Any] = {"depths": [1, 1], "image_size": 32, "num_labels": 5}

_BY_KIND: dict[str, dict[str, Callable[[], Example]]] = {
    "text encoder": {
        "bert": _model("BertForSequenceClassification", _text, **_ENCODER),
        "bert-mlm": _model("BertForMaskedLM", _text, **_DECODER),
        "roberta": _model("RobertaForSequenceClassification", _text, **_ENCODER),
        "distilbert": _model(
            "DistilBertForSequenceClassification", _text, vocab_size=WORDS, dim=64, n_layers=2, n_heads=4,
            hidden_dim=128, max_position_embeddings=32, num_labels=5,
        ),
        "albert": _model("AlbertForSequenceClassification", _text, embedding_size=32, **_ENCODER),
        "electra": _model("ElectraForSequenceClassification", _text, embedding_size=32, **_ENCODER),
        "deberta-v2": _model("DebertaV2ForSequenceClassification", _text, **{
            **_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
        }),
        "mpnet": _model("MPNetForSequenceClassification", _text, **_ENCODER),
        "modernbert": _model("ModernBertForSequenceClassification", _text, cls_token_id=1, sep_token_id=2, **_ENCODER),
        "convbert": _model("ConvBertForSequenceClassification", _text, embedding_size=32, **_ENCODER),
        "squeezebert": _model("SqueezeBertForSequenceClassification", _text, embedding_size=64, **_ENCODER),
        "fnet": _model("FNetForSequenceClassification", lambda: {"input_ids": _tokens()}, **{
            key: value for key, value in _ENCODER.items() if key != "num_attention_heads"
        }),
    },
    "text decoder": {
        "gpt2": _model(
            "GPT2LMHeadModel", _causal, vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=32, **_IDS,
        ),
        "gpt-neo": _model(
            "GPTNeoForCausalLM", _causal, vocab_size=WORDS, hidden_size=64, num_layers=2, num_heads=4,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=32, window_size=4, **_IDS,
        ),
        "gpt-neox": _model("GPTNeoXForCausalLM", _causal, **_DECODER),
        "opt": _model(
            "OPTForCausalLM", _causal, vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            ffn_dim=128, max_position_embeddings=32, word_embed_proj_dim=64, **_IDS,
        ),
        "bloom": _model("BloomForCausalLM", _causal, vocab_size=WORDS, hidden_size=64, n_layer=2, n_head=4, **_IDS),
        "llama": _model("LlamaForCausalLM", _causal, **_GROUPED),
        "mistral": _model("MistralForCausalLM", _causal, **_GROUPED, sliding_window=8),
        "mixtral": _model("MixtralForCausalLM", _causal, **_GROUPED, num_local_experts=4, num_experts_per_tok=2),
        "qwen2": _model("Qwen2ForCausalLM", _causal, **_GROUPED),
        "qwen3": _model("Qwen3ForCausalLM", _causal, **_GROUPED, head_dim=8),
        "gemma": _model("GemmaForCausalLM", _causal, **_GROUPED, head_dim=8),
        "gemma2": _model("Gemma2ForCausalLM", _causal, **_GROUPED, head_dim=8, sliding_window=8),
        "phi": _model("PhiForCausalLM", _causal, **_DECODER),
        "phi3": _model("Phi3ForCausalLM", _causal, **_GROUPED),
        "falcon": _model(
            "FalconForCausalLM", _causal, vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            **_IDS,
        ),
        "mamba": _model(
            "MambaForCausalLM", _causal, vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, state_size=4, **_IDS,
        ),
    },
    "text encoder-decoder": {
        "t5": _model("T5ForConditionalGeneration", _pair, **_T5),
        "flan-t5": _model("T5ForConditionalGeneration", _pair, **_T5, feed_forward_proj="gated-gelu"),
        "mt5": _model("MT5ForConditionalGeneration", _pair, **_T5),
        "bart": _model("BartForConditionalGeneration", _pair, **_BART),
        "mbart": _model("MBartForConditionalGeneration", _pair, **_BART),
        "pegasus": _model("PegasusForConditionalGeneration", _pair, **_BART),
        "marian": _model("MarianMTModel", _pair, **_BART),
    },
    "vision": {
        "vit": _model("ViTForImageClassification", _pixels(), **_VIT),
        "deit": _model("DeiTForImageClassification", _pixels(), **_VIT),
        "beit": _model("BeitForImageClassification", _pixels(), **_VIT, use_relative_position_bias=True),
        "dinov2": _model("Dinov2ForImageClassification", _pixels(), **_VIT, mlp_ratio=2),
        "swin": _model(
            "SwinForImageClassification", _pixels(), **_STAGES, embed_dim=16, num_heads=[4, 8], window_size=4,
            patch_size=2,
        ),
        "swinv2": _model(
            "Swinv2ForImageClassification", _pixels(), **_STAGES, embed_dim=16, num_heads=[4, 8], window_size=4,
            patch_size=2,
        ),
        "convnext": _model("ConvNextForImageClassification", _pixels(), **_STAGES, hidden_sizes=[16, 32], num_stages=2),
        "convnextv2": _model(
            "ConvNextV2ForImageClassification", _pixels(), **_STAGES, hidden_sizes=[16, 32], num_stages=2,
        ),
        "resnet": _model(
            "ResNetForImageClassification", _pixels(), depths=[1, 1], hidden_sizes=[32, 64], embedding_size=16,
            num_labels=5,
        ),
        "regnet": _model(
            "RegNetForImageClassification", _pixels(), depths=[1, 1], hidden_sizes=[32, 64], embedding_size=16,
            groups_width=8, num_labels=5,
        ),
        "mobilevit": _model(
            "MobileViTForImageClassification", _pixels(64), image_size=64, hidden_sizes=[32, 48, 64],
            neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 96], num_labels=5,
        ),
        "poolformer": _model(
            "PoolFormerForImageClassification", _pixels(64), depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32],
            num_labels=5,
        ),
        "levit": _model(
            "LevitForImageClassification", _pixels(64), image_size=64, hidden_sizes=[32, 48, 64],
            num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8], num_labels=5,
        ),
        "cvt": _model(
            "CvtForImageClassification", _pixels(64), embed_dim=[16, 32, 64], num_heads=[1, 2, 4], depth=[1, 2, 3],
            num_labels=5,
        ),
        "segformer": _model(
            "SegformerForSemanticSegmentation", _pixels(64), depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64],
            num_attention_heads=[1, 2, 4, 8], decoder_hidden_size=32, num_labels=5,
        ),
        "clip": _model("CLIPForImageClassification", _pixels(), vision_config=_VIT, projection_dim=32, num_labels=5),
    },
    "audio": {
        "wav2vec2": _model("Wav2Vec2ForSequenceClassification", _samples, **_SPEECH),
        "wav2vec2-ctc": _model("Wav2Vec2ForCTC", _samples, **_SPEECH),
        "hubert": _model("HubertForSequenceClassification", _samples, **_SPEECH),
        "audio-spectrogram": _model(
            "ASTForAudioClassification", _spectrum,
            **{key: value for key, value in _VIT.items() if key != "image_size"},
            max_length=64, num_mel_bins=16, frequency_stride=8, time_stride=8,
        ),
        "whisper": _model("WhisperForConditionalGeneration", _whisper, **{
            **{key: value for key, value in _BART.items() if key != "max_position_embeddings"},
            "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16, "suppress_tokens": None,
            "begin_suppress_tokens": None,
        }),
    },
}  # fmt: skip
TRANSFORMERS = {name: make for table in _BY_KIND.values() for name, make in table.items()}
KINDS = {name: kind for kind, table in _BY_KIND.items() for name in table}
