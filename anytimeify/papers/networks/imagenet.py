"""torchvision's networks for 224x224 images, without trained weights."""

from __future__ import annotations

from torch import nn

from anytimeify._torch import prepare_torchvision
from anytimeify.errors import MissingExtraError

__all__ = ["imagenet"]


def imagenet(num_classes: int = 1000, *, network: str) -> nn.Module:
    """The network of torchvision of that name, such as `resnet50`: (N, 3, 224, 224) -> (N, num_classes).

    Raises `MissingExtraError` where torchvision is not installed.
    """
    prepare_torchvision()
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise MissingExtraError("torchvision", "zoo", f"The network '{network}' of ImageNet") from error
    model: nn.Module = get_model(network, weights=None, num_classes=num_classes)
    return model
