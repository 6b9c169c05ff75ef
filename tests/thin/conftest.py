"""Before the zoos are imported: a CPU-only torch beside PyPI's torchvision needs two operator schemas to exist."""

from anytimeify._torch import prepare_torchvision

prepare_torchvision()
