"""One process or several: what wraps a network, whole tensors of parts, and gradients that are averaged by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["average_gradients", "load", "load_optimiser", "same_buffers", "sharded", "spread", "whole", "wrap"]


def wrap(net: nn.Module, accelerator: Any, shard: bool) -> nn.Module:
    """The network as the processes of a run call it: as it is in one; else by DistributedDataParallel, without
    `find_unused_parameters`, or with `shard` as FSDP2 changes it in place."""
    net.to(accelerator.device)
    if shard and torch.distributed.is_initialized():
        if not sharded(net):
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
            fully_shard(net, mesh=mesh)
        return net
    if accelerator.num_processes == 1 or not any(one.requires_grad for one in net.parameters()):
        return net
    device = [accelerator.device.index] if accelerator.device.type != "cpu" else None
    return nn.parallel.DistributedDataParallel(net, device_ids=device)


def sharded(net: nn.Module) -> bool:
    """Whether parameters are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in net.parameters())


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over all processes, of parameters that have a gradient; they have to be the same ones everywhere."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    by_kind: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_kind.setdefault(gradient.dtype, []).append(gradient)
    for some in by_kind.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in some])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for gradient, part in zip(some, flat.split([one.numel() for one in some]), strict=True):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def same_buffers(net: nn.Module) -> None:
    """Buffers, such as statistics of norms, become those of the first process."""
    for buffer in net.buffers():
        distributed.broadcast(buffer, 0)


def whole(value: Any) -> Any:
    """Nested dicts and lists with every tensor whole; on the CPU where it was spread over processes."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: whole(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [whole(one) for one in value]
    return value


@torch.no_grad()
def load(net: nn.Module, state: dict[str, Any]) -> None:
    """A state dict of whole tensors."""
    if not sharded(net):
        net.load_state_dict(state)
        return
    for name, own in net.state_dict().items():
        if isinstance(own, Tensor):
            own.copy_(spread(state[name], own))


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The state of an optimiser, of whole tensors, whose parameters may be spread."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    states = {
        number: {
            name: spread(one, parameters[number]) if isinstance(one, Tensor) and one.ndim else one
            for name, one in entries.items()
        }
        for number, entries in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": states})


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as another one is: spread over processes, or as it is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
