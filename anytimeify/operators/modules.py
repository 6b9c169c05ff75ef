"""Operations and modules of ours that a training graph may hold. An inference graph holds none of them.

`torch.ops.anytimeify.drop_path` is the canonical form of stochastic depth (Huang et al. 2016): it drops always, as
dropout in its training form does; `DropPath` is what a graph of modules calls, and does nothing in eval mode.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "CUMULATIVE",
    "LIBRARY",
    *("Added", "AttentionDropout", "BatchNormCall", "DropPath", "FrozenBatchNorm", "Part", "TrainingSwitch"),
    *("Watch", "Watched"),
    "drop_path",
]

# The momentum of a batch norm, in a graph, whose running statistics are averages over all batches (`momentum=None`).
CUMULATIVE = -1.0

# What the package's own operators are registered in.
LIBRARY = torch.library.Library("anytimeify", "FRAGMENT")
LIBRARY.define("drop_path(Tensor x, float keep_prob, bool scale_by_keep=True, str mode='row') -> Tensor")


def drop_path(x: Tensor, keep_prob: float, scale_by_keep: bool = True, mode: str = "row") -> Tensor:
    """Zeroes whole samples (`mode="row"`) or the whole batch (`"batch"`) with probability `1 - keep_prob`."""
    if mode not in ("row", "batch"):
        raise ValueError(f"mode is 'row' or 'batch', not {mode!r}")
    kept = x.new_empty([x.shape[0] if mode == "row" else 1] + [1] * (x.dim() - 1)).bernoulli_(keep_prob)
    if scale_by_keep and keep_prob > 0.0:
        kept = kept / keep_prob
    return x * kept


# Made of differentiable operations: autograd, autocast, export and compilation see through it.
LIBRARY.impl("drop_path", drop_path, "CompositeImplicitAutograd")


class DropPath(nn.Module):
    """Stochastic depth: `drop_path` in training, the identity in eval mode."""

    def __init__(self, keep_prob: float, scale_by_keep: bool = True, mode: str = "row") -> None:
        super().__init__()
        self.keep_prob, self.scale_by_keep, self.mode = keep_prob, scale_by_keep, mode

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.keep_prob, self.scale_by_keep, self.mode) if self.training else x

    def extra_repr(self) -> str:
        return f"keep_prob={self.keep_prob:.4g}, scale_by_keep={self.scale_by_keep}, mode={self.mode!r}"


class AttentionDropout(nn.Module):
    """Scaled dot product attention whose attention weights are dropped in training only."""

    def __init__(self, p: float, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> None:
        super().__init__()
        self.p, self.is_causal, self.scale, self.enable_gqa = p, is_causal, scale, enable_gqa

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        p = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, p, self.is_causal, scale=self.scale, enable_gqa=self.enable_gqa
        )

    def extra_repr(self) -> str:
        return f"p={self.p}"


class FrozenBatchNorm(nn.Module):
    """Batch norm that is in eval mode whatever the mode of the model: it reads its running statistics, and keeps them.

    No subclass of torch's batch norms, so that nothing which looks for those, such as
    `SyncBatchNorm.convert_sync_batchnorm`, makes it train again. `weight` and `bias` train unless they are frozen too.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, *, affine: bool = True, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for name, start in (("weight", torch.ones), ("bias", torch.zeros)):
            self.register_parameter(name, nn.Parameter(start(num_features, device=device)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features, device=device))
        self.register_buffer("running_var", torch.ones(num_features, device=device))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"


class BatchNormCall(nn.Module):
    """Batch norm whose parameters and running statistics are given at the call, as views of larger tensors.

    Running statistics of a contiguous slice are updated through it. Those of a selection cannot be: give the whole
    statistics with the `index` (1-d, int64) of the selected channels, and they are written back. `counter` (0-d, int64)
    counts the batches; `momentum=CUMULATIVE` averages over them, and is 0.1 without one.
    """

    def __init__(self, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum: float | None = None if momentum == CUMULATIVE else momentum
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        index: Tensor | None = None,
        counter: Tensor | None = None,
    ) -> Tensor:
        momentum = 0.1 if self.momentum is None else self.momentum
        if running_mean is None or running_var is None:
            return F.batch_norm(x, None, None, weight, bias, True, momentum, self.eps)
        if counter is not None and self.training:
            counter.add_(1)
            momentum = 1 / float(counter) if self.momentum is None else momentum
        if index is None:
            return F.batch_norm(x, running_mean, running_var, weight, bias, self.training, momentum, self.eps)
        mean, var = running_mean.index_select(0, index), running_var.index_select(0, index)
        y = F.batch_norm(x, mean, var, weight, bias, self.training, momentum, self.eps)
        if self.training:
            # Batch norms of other levels have saved these statistics for their backward pass, which does not read them
            # in training mode; `.data` keeps the write from counting as a change of what they saved.
            running_mean.data.index_copy_(0, index, mean)
            running_var.data.index_copy_(0, index, var)
        return y

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, eps={self.eps}"


class TrainingSwitch(nn.Module):
    """An operation with a training flag among its positional arguments (`lstm`, `rrelu`), which follows the mode."""

    def __init__(self, target: Any, position: int) -> None:
        super().__init__()
        self.target, self.position = target, position

    def forward(self, *args: Any) -> Any:
        return self.target(*args[: self.position], self.training, *args[self.position :])

    def extra_repr(self) -> str:
        return str(self.target)


class Watch:
    """Whether layers or tensors of a model may have been replaced since it has last looked at them."""

    def __init__(self) -> None:
        self.changed = False


class Watched(nn.Module):
    """A module that notes when a layer or a tensor is assigned to it."""

    _watch: Watch | None = None  # of the model that this is a part of

    def __setattr__(self, name: str, value: Any) -> None:
        if self._watch is not None and isinstance(value, nn.Module | Tensor):
            self._watch.changed = True
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As in `nn.Module`."""
        if self._watch is not None:
            self._watch.changed = True
        super().add_module(name, module)

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """As in `nn.Module`, for tensors without values; those that have some keep them, and tied ones stay tied.

        Of a model that was made of a backbone on the meta device, those are constants, which no checkpoint holds."""
        places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        values: dict[int, Tensor] = {}
        for module in self.modules() if recurse else [self]:
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        places.setdefault(id(tensor), []).append((held, name))
                        if not tensor.is_meta:
                            values[id(tensor)] = tensor.detach()
        super().to_empty(device=device, recurse=recurse)
        for key, ((held, name), *ties) in places.items():
            made: Any = held[name]
            if key in values:
                made.detach().copy_(values[key])
            for other, tied in ties:
                other[tied] = made
        return self


class Part(Watched):
    """A place in the backbone that is no layer: it holds layers, and tensors that operations read as they are."""

    def extra_repr(self) -> str:
        tensors = {**self._parameters, **self._buffers}
        return ", ".join(f"{name}: {list(tensor.shape)}" for name, tensor in tensors.items() if tensor is not None)


class Added(Watched):
    """What a model has beside the backbone, its child `anytime`: layers of single levels, modules that operations call,
    the loss. It prints as a summary, for there may be a layer of every level for each of the backbone's.
    """

    def __repr__(self) -> str:
        lines = [f"({name}): {child if name == 'loss' else _contents(child)}" for name, child in self.named_children()]
        return "\n".join(["Added(", *(textwrap.indent(line, "  ") for line in lines), ")"])


def _contents(module: nn.Module) -> str:
    counts: Counter[str] = Counter()
    for one in module.modules():
        if isinstance(one, Part):
            counts["tensor"] += len(one._parameters) + len(one._buffers)
        else:
            counts[type(one).__name__] += 1
    return ", ".join(
        f"{count} {kind}{'s' if kind == 'tensor' and count > 1 else ''}" for kind, count in counts.items() if count
    )
