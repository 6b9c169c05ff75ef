"""Weights that are normalised by what a power iteration finds: a level is the thin network with the same iteration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm

from anytimeify import AnytimeModel, NestedChannels, load, transform
from anytimeify.testing import check
from tests.rounding import close

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(spectral_norm(nn.Conv2d(3, width, 3)), nn.ReLU(), spectral_norm(nn.Conv2d(width, width, 3)), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)),
    )


def thin(net: AnytimeModel, level: int) -> nn.Sequential:
    """The network at half width, with the tensors that a level reads: its own, or parts of the full ones."""
    result, given = network(4), net.state_dict()
    found = {}
    for name, tensor in result.state_dict().items():
        own = given.get(f"anytime.{level}.{name}", given[name])
        found[name] = own[tuple(slice(size) for size in tensor.shape)]
    result.load_state_dict(found)
    return result


def test_a_level_is_the_thin_network_in_both_modes(tmp_path: Path) -> None:
    model = network(8)
    net = transform(model, NestedChannels((0.5, 1.0)), X)
    check(net, model, (X,))
    other = thin(net, 0).eval()
    assert close(net.eval()(X, level=0), other(X))
    for _ in range(3):
        assert close(net.train()(X, level=0), other.train()(X))
        assert close(net(X, level=-1), model.train()(X))
    assert close(net.eval()(X, level=0), other.eval()(X))
    assert close(net(X, level=-1), model.eval()(X))
    net.save(tmp_path / "net")
    assert close(load(tmp_path / "net").eval()(X, level=0), other(X))


def test_the_weight_of_a_level_has_norm_one_from_the_start() -> None:
    net = transform(network(8), NestedChannels((0.5, 1.0)), X)
    other = thin(net, 0).eval()
    for place in (0, 2):
        weight = other[place].weight
        assert isinstance(weight, Tensor)
        assert 0.9 < torch.linalg.matrix_norm(weight.flatten(1), 2) < 1.2


@pytest.mark.parametrize(
    "scheme",
    [
        *("nested-channels{widths=0.5,1 norms=shared}", "hierarchical-ensemble{depth=1}"),
        *("auxiliary-branches{branches=1}", "nested-weights{densities=0.5,1}"),
    ],
)
def test_other_schemes_take_it(scheme: str) -> None:
    model = network(8)
    check(transform(model, scheme, X), model, (X,))


def test_an_orthogonal_weight_stays_whole_and_the_others_narrow() -> None:
    model = nn.Sequential(
        *(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), orthogonal(nn.Linear(8, 8)), nn.ReLU()),
        nn.Linear(8, 3),
    )
    x = torch.randn(4, 6)
    net = transform(model, NestedChannels((0.5, 1.0)), x)
    check(net, model, (x,))
    assert net.extract(level=0).get_parameter("0.weight").shape == (4, 6)
    assert "a matrix is read as a whole" in str(net.report())
