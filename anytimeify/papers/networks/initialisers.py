"""How the authors' code draws the weights of one layer. A backbone takes one of them as `initialise`.

It offers the same function as `_init_weights`, so copies of its layers that a scheme makes are drawn in the same way.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["fan_in", "fan_out", "of_the_layer", "xavier"]


def fan_out(module: nn.Module) -> None:
    """Convolutions from N(0, 2 / (kernel area * output channels)); norms 1 and 0; linear layers as torch draws them.

    He et al. 2015 with the size of the output: what most residual and dense networks are trained from.
    """
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        nn.init.normal_(module.weight, 0.0, (2.0 / (height * width * module.out_channels)) ** 0.5)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def fan_in(module: nn.Module) -> None:
    """Convolutions and linear layers from N(0, 2 / inputs), their biases 0; norms from U(0, 1) and 0.

    He et al. 2015 with the number of inputs, and the random factors of the norms that wide residual networks of
    Yao and Sun 2020 start from.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        torch.nn.init.uniform_(module.weight, 0.0, 1.0)
        nn.init.zeros_(module.bias)


def of_the_layer(module: nn.Module) -> None:
    """What torch's own layers draw when they are made; nothing is drawn again."""


def xavier(module: nn.Module) -> None:
    """Convolutions and linear layers from U(-a, a), a^2 = 6 / (kernel area * (inputs + outputs)), their biases 0.

    Glorot and Bengio 2010. Norms 1 and 0.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
