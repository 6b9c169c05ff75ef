"""Plain backbones that several papers share. None of them knows of levels, branches or any other scheme."""

from anytimeify.papers.networks.cifar_resnet import CifarResNet
from anytimeify.papers.networks.densenet import DenseNet
from anytimeify.papers.networks.imagenet import imagenet
from anytimeify.papers.networks.mobilenet import MobileNet
from anytimeify.papers.networks.multi_scale import MultiScaleDenseNet
from anytimeify.papers.networks.preactivation import PreActivationResNet
from anytimeify.papers.networks.resnext import ResNeXt
from anytimeify.papers.networks.wide_resnet import WideResNet

__all__ = [
    "CifarResNet",
    "DenseNet",
    "MobileNet",
    "MultiScaleDenseNet",
    "PreActivationResNet",
    "ResNeXt",
    "WideResNet",
    "imagenet",
]
