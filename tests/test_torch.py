"""Every symbol of torch that is not public, called once: a torch that moves one fails here, not in a user's model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sympy
import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from anytimeify import _torch
from anytimeify.ir.schema import argument, bound, is_mutable, position, rebind

aten = torch.ops.aten


def test_trees() -> None:
    leaves, spec = _torch.flatten({"a": [1, (2, 3)], "b": None})
    again = _torch.treespec_loads(_torch.treespec_dumps(spec))
    assert _torch.unflatten(leaves, again) == {"a": [1, (2, 3)], "b": None}


def test_functional_overloads() -> None:
    assert _torch.functional_overload(aten.add_.Tensor) is aten.add.Tensor
    assert _torch.functional_overload(aten.dropout_.default) is aten.dropout.default
    assert _torch.functional_overload(aten.add.Tensor) is None
    assert _torch.functional_overload(aten.div.out) is aten.div.Tensor
    assert _torch.functional_overload(aten.sum.IntList_out) is aten.sum.dim_IntList
    assert _torch.functional_overload(aten.__and__.Tensor) is None
    assert _torch.functional_overload(aten.pow_.Scalar) is aten.pow.Tensor_Scalar
    assert _torch.functional_overload(aten.pow_.Tensor) is aten.pow.Tensor_Tensor
    assert _torch.functional_overload(aten.__iand__.Tensor) is aten.__and__.Tensor
    assert _torch.functional_overload(aten.polygamma_.default) is aten.polygamma.default
    assert _torch.functional_overload(aten.zeros.out) is aten.zeros.default
    assert _torch.functional_overload(aten.fill_diagonal_.default) is None
    assert _torch.schema(aten.add.Tensor).name == "aten::add"


def test_tensors_without_data() -> None:
    weight = nn.Parameter(torch.ones(2, 3, device="meta"), requires_grad=False)
    shell, other = _torch.without_data([weight, torch.ones(3, dtype=torch.int64)], "cpu")
    assert isinstance(shell, nn.Parameter)
    assert (shell.device.type, tuple(shell.shape), shell.requires_grad) == ("cpu", (2, 3), False)
    assert (other.device.type, other.dtype) == ("cpu", torch.int64)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 2 * gradients[0]


doubled: Any = Doubled.apply


def test_calls_of_autograd_functions() -> None:
    x = torch.ones(2, requires_grad=True)
    with _torch.autograd_calls(lambda apply, function, x: (function, apply(x) + 1)):
        found, value = doubled(x)
        with _torch.autograd_calls(lambda apply, function, x: apply(x)[1] + 1):
            assert doubled(x).tolist() == [4, 4]
        assert Doubled.apply(x)[1].tolist() == [3, 3]  # type: ignore[no-untyped-call]  # of torch
    assert found is Doubled
    assert value.tolist() == [3, 3]
    assert doubled(x).tolist() == [2, 2]


def test_recomputation_and_hooks_of_the_backward_pass() -> None:
    calls: list[int] = []
    x = torch.ones(2, requires_grad=True)

    def count(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x.sin()

    with _torch.without_recomputation():
        checkpoint(count, x, use_reentrant=False).sum().backward()
    assert len(calls) == 1
    checkpoint(count, x, use_reentrant=False).sum().backward()
    assert len(calls) == 3

    @contextmanager
    def around() -> Iterator[None]:
        calls.append(2)
        yield
        calls.append(3)

    with _torch.without_recomputation(around):
        checkpoint(count, x, use_reentrant=False).sum().backward()
    assert calls[3:] == [2, 1, 3]
    layer = nn.Linear(2, 2)
    assert _torch.backward_hooks(layer) == _torch.gradient_hooks(layer.weight) == []
    layer.register_full_backward_hook(print)
    layer.register_full_backward_pre_hook(print)
    layer.weight.register_hook(print)
    layer.weight.register_post_accumulate_grad_hook(print)
    assert _torch.backward_hooks(layer) == _torch.gradient_hooks(layer.weight) == [print, print]


def test_operations_below_autograd_are_seen() -> None:
    class Seen(_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    with Seen():  # type: ignore[no-untyped-call]  # of torch
        torch.nn.functional.dropout(torch.ones(2, requires_grad=True), 0.5)
    assert aten.bernoulli_.float in seen


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


def test_operations_run_on_symbolic_sizes() -> None:
    size = sympy.Symbol("s", integer=True, positive=True)
    world = _torch.SymbolicSizes({size: 10})
    x = world.empty([size, sympy.Integer(4), size], torch.float32)
    assert x.device.type == "meta"
    pooled = world.run(aten.max_pool2d.default, ([x, [2, 2]]), {})
    assert [world.expression(one) for one in pooled.shape] == [size, 2, _torch.size_functions()["FloorDiv"](size, 2)]
    with pytest.raises(_torch.VALUES_WANTED):
        world.run(aten.nonzero.default, (x,), {})


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


def test_assertions_are_calls_that_exporters_know() -> None:
    class Checked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _torch.assert_holds(x.size(0) == 2, "two of them")  # type: ignore[no-untyped-call]  # of torch
            return x + 1

    with pytest.raises(AssertionError, match="two of them"):
        Checked()(torch.ones(3))
    assert torch.export.export(Checked(), (torch.ones(2),)).module()(torch.ones(2)).shape == (2,)


def test_an_export_may_be_left_for_a_moment() -> None:
    class Recorded(_torch.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    with Recorded() as mode:  # type: ignore[no-untyped-call]  # of torch
        with _torch.without_dispatch_modes():
            torch.ones(2).add(1)
        assert mode.calls == 0
        torch.ones(2).add(1)
        assert mode.calls > 0
