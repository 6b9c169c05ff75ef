"""Nothing in a training step of a triangular network waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
from anytimeify._torch import TorchDispatchMode

WAITING = {
    "aten._local_scalar_dense",
    "aten.item",
    "aten.nonzero",
    "aten.masked_select",
    "aten.equal",
    "aten.is_nonzero",
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 4}),
    "ResNet": ("resnet18", {"channels": (64, 64, 128, 128), "layers": (1, 1, 1, 1)}),
    "standardised weights": ("test_nfnet", {}),
    "global response norms": ("test_convnext2", {}),
    "group norms": ("test_resnet", {"norm_layer": "groupnorm1"}),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


class Seen(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function).removesuffix(f".{function._overloadname}"))
        return function(*args, **(kwargs or {}))


def step(name: str, device: str) -> Callable[[], None]:
    import timm

    kind, changed = NETWORKS[name]
    model: nn.Module = timm.create_model(kind, num_classes=5, **changed)
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    net = transform(model, NestedChannels(connectivity="triangular"), (x,), verify=False).to(device)
    x, target = x.to(device), target.to(device)

    def run() -> None:
        net.loss(net(x), target).backward()

    return run


@every_network
def test_no_operation_gives_a_number_to_python(name: str) -> None:
    run = step(name, "cpu")
    run()
    with Seen() as seen:
        run()
    assert not seen.names & WAITING
    assert any(name.endswith("backward") for name in seen.names)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@every_network
def test_no_step_waits_for_the_device(name: str) -> None:
    run = step(name, "cuda")
    run()  # measures, and makes masks
    run()  # masks all weights together
    try:
        torch.cuda.set_sync_debug_mode("error")
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_number_asked_for_is_seen() -> None:
    x: Tensor = torch.ones(())
    with Seen() as seen:
        float(x)
    assert seen.names & WAITING
