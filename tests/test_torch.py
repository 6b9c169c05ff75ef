"""Every symbol of torch that is not public, called once: a torch that moves one fails here, not in a user's model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import fx, nn

from anytimeify import _torch
from anytimeify.schema import argument, bound, is_mutable, position, rebind

aten = torch.ops.aten


def test_trees() -> None:
    leaves, spec = _torch.flatten({"a": [1, (2, 3)], "b": None})
    again = _torch.treespec_loads(_torch.treespec_dumps(spec))
    assert _torch.unflatten(leaves, again) == {"a": [1, (2, 3)], "b": None}


def test_functional_overloads() -> None:
    assert _torch.functional_overload(aten.add_.Tensor) is aten.add.Tensor
    assert _torch.functional_overload(aten.dropout_.default) is aten.dropout.default
    assert _torch.functional_overload(aten.add.Tensor) is None
    assert _torch.functional_overload(aten.__and__.Tensor) is None
    assert _torch.schema(aten.add.Tensor).name == "aten::add"


def test_expressions_and_higher_order_operations() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return x.reshape(-1) * 2

    with _torch.quiet_exporter():
        exported = torch.export.export(Model(), (torch.ones(3, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    size = next(iter(exported.graph.nodes)).meta["val"].shape[0]
    assert [str(symbol) for symbol in _torch.expression(size).free_symbols] == [str(size)]
    assert _torch.expression(3) == 3
    assert sum(map(_torch.is_higher_order, exported.graph.nodes)) == 1


def test_operators_are_those_of_the_dispatcher() -> None:
    assert _torch.operator("aten", "add", "Tensor") is aten.add.Tensor
    assert _torch.operator("aten", "__and__", "Tensor") is aten.__and__.Tensor
    assert _torch.operator("aten", "save", "default") is None  # of TorchScript alone
    assert _torch.operator("aten", "add", "nothing") is None
    assert _torch.text_arguments(aten.gelu.default) == ["approximate"]
    assert _torch.text_arguments(aten.div.Tensor_mode) == ["rounding_mode"]
    assert _torch.text_arguments(aten.from_file.default) == ["filename"]


@pytest.mark.zoo
def test_torchvision_can_be_imported() -> None:
    _torch.prepare_torchvision()
    _torch.prepare_torchvision()
    import torchvision

    assert torchvision.models.resnet18


def node(target: object, *args: object, **kwargs: object) -> fx.Node:
    return fx.Graph().call_function(target, args, kwargs)  # type: ignore[arg-type]


def test_arguments_by_name() -> None:
    conv = node(aten.conv2d.default, 1, 2, None, [2, 2], groups=4)
    values = bound(conv)
    assert list(values) == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert values["stride"] == [2, 2]
    assert argument(conv, "groups") == 4
    assert argument(conv, "dilation") in ([1, 1], 1, [1])
    assert rebind(aten.conv2d.default, values) == ((1, 2, None, [2, 2], values["padding"], values["dilation"], 4), {})
    assert rebind(aten.softmax.int, {"self": 1, "dim": -1, "dtype": None}) == ((1, -1), {})
    assert rebind(aten.zeros.default, {"size": [2], "dtype": torch.int64})[1] == {"dtype": torch.int64}
    assert bound(node(max, 3, 4, key=5)) == {"0": 3, "1": 4, "key": 5}
    assert rebind(max, {"0": 3, "1": 4, "key": 5}) == ((3, 4), {"key": 5})
    assert position(aten.lstm.input, "train") == 6
    assert is_mutable(aten.add_.Tensor)
    assert is_mutable(aten.add.out)
    assert not is_mutable(aten.add.Tensor)
    assert not is_mutable(max)


def test_what_is_called_below_autograd_is_not_differentiated() -> None:
    x = torch.ones(2, requires_grad=True)
    with _torch.below_autograd():
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_torchvision_imports_after_anytimeify() -> None:
    """On a CPU build of torch too, and without loading torchvision for those who do not want it."""
    pytest.importorskip("torchvision")
    code = "import sys, anytimeify; assert 'torchvision' not in sys.modules; import torchvision.models"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
