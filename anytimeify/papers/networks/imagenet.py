"""torchvision's networks for 224x224 images, without trained weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from anytimeify._torch import prepare_torchvision
from anytimeify.errors import MissingExtraError

__all__ = ["imagenet"]


def imagenet(
    num_classes: int = 1000, *, network: str, initialise: Callable[[nn.Module], None] | None = None
) -> nn.Module:
    """The network of torchvision of that name, such as `resnet50`: (N, 3, 224, 224) -> (N, num_classes).

    `initialise` draws the weights of a layer; by default they are those that torchvision draws. Raises
    `MissingExtraError` where torchvision is not installed.
    """
    prepare_torchvision()
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise MissingExtraError("torchvision", "zoo", f"The network '{network}' of ImageNet") from error
    model: nn.Module = get_model(network, weights=None, num_classes=num_classes)
    if initialise is not None:
        model._init_weights = initialise  # type: ignore[assignment]  # a function, which a module may hold
        model.apply(initialise)
    return model
