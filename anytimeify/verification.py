"""Translation validation: the numbers of a model against those of its backbone, on the example inputs, in eval mode.

Two programs agree when no element differs by more than 1e-5 of the largest magnitude of the reference. Networks with
random weights may amplify rounding beyond that, or overflow: where single precision says that they differ, or gives
anything that is not finite, both are run once more in double precision, and that decides. Infinities and NaNs agree
with themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from anytimeify._torch import OpOverload, flatten
from anytimeify.calling import Calling
from anytimeify.errors import VerificationError
from anytimeify.ir import Captured
from anytimeify.lift import lift
from anytimeify.model import AnytimeModel
from anytimeify.schema import bound

__all__ = ["TOLERANCE", "difference", "verify"]

TOLERANCE = 1e-5
_ADVICE = "Please report this with the model; transform(..., verify=False) skips the check"


def verify(net: AnytimeModel, model: nn.Module | ExportedProgram, *, reference: Tensor | None = None) -> None:
    """Checks a fresh model; `VerificationError` names the first node that differs.

    1. The full level equals `model`, the backbone. A program that was exported in training mode cannot be run in eval
       mode, and is left out.
    2. Every level run inside the joint graph equals the same level extracted.

    `reference` is the backbone's prediction where it is known already. Training flags are afterwards as before; the
    backbone is only called.
    """
    inputs = net.captured.example_inputs
    with _evaluating(net), torch.no_grad():
        predictions = [_clone(x) for x in net.graphs[0](*_clone(inputs))[: len(net.levels)]]
        backbone = _eval_form(model)
        if backbone is not None:
            _check_full(net, backbone, predictions[net.full], reference)
        for level in net.levels:
            small = net.extract(level)
            args, kwargs = _call(net, inputs)
            result = small(*args, **kwargs)
            if not _agree(predictions[level.index], result):
                _check_level_in_double(net, level.index)


def difference(reference: Tensor, result: Tensor) -> float:
    """The largest difference relative to the largest magnitude of `reference`; infinite where shapes or what is not
    finite differ."""
    if reference.shape != result.shape:
        return float("inf")
    if not reference.numel():
        return 0.0
    expected, found = reference.detach().double(), result.detach().double()
    finite = expected.isfinite()
    same = torch.where(finite, found.isfinite(), (expected == found) | (expected.isnan() & found.isnan()))
    if not bool(same.all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    scale = float(expected[finite].abs().max())
    error = float((expected[finite] - found[finite]).abs().max())
    return error / scale if scale > 0 else (0.0 if error == 0 else float("inf"))


def _eval_form(model: nn.Module | ExportedProgram) -> nn.Module | None:
    if isinstance(model, nn.Module):
        return model
    for node in model.graph.nodes:
        if isinstance(node.target, OpOverload):
            given = bound(node)
            if any(given.get(flag) is True for flag in ("training", "train", "use_input_stats")) or given.get(
                "dropout_p"
            ):
                return None
            if "bernoulli" in str(node.target) or "rand" in str(node.target):
                return None
    return model.module()


def _agree(reference: Tensor, result: Tensor) -> bool:
    """Whether single precision is enough to say that two results agree."""
    return difference(reference, result) <= TOLERANCE and bool(reference.isfinite().all())


def _check_full(net: AnytimeModel, model: nn.Module, prediction: Tensor, reference: Tensor | None) -> None:
    captured = net.captured
    if reference is None:
        reference = _run_backbone(model, captured, captured.example_inputs)
    if _agree(reference, prediction):
        return
    error = difference(reference, prediction)
    inputs = tuple(_double(x) for x in captured.example_inputs)
    try:
        double = copy.deepcopy(model).double()
        reference = _run_backbone(double, captured, inputs)
        wide = copy.deepcopy(net).double()
        prediction = wide.graphs[1 + net.full](*_clone(inputs))
    except Exception:  # a model that cannot be copied or that insists on single precision: that verdict stands
        if error <= TOLERANCE:
            return
    else:
        error = difference(reference, prediction)
        if error <= TOLERANCE:
            return
    source = lift(captured.program, training=False)
    node = _first_difference(source, captured.example_inputs, net.graphs[1 + net.full], captured.example_inputs)
    if node is None:
        raise VerificationError(
            f"the captured graph, before any rewrite, differs from the backbone by {error:.1e} in eval mode: the "
            f"backbone computes something in eval mode that it does not in training mode, or is random. {_ADVICE}"
        )
    raise VerificationError(
        f"the full level differs from the backbone by {error:.1e}, first at {_where(net, node)}. {_ADVICE}"
    )


def _check_level_in_double(net: AnytimeModel, index: int) -> None:
    wide = copy.deepcopy(net).double()
    inputs = tuple(_double(x) for x in net.captured.example_inputs)
    small = wide.extract(index)
    level = wide.graphs[1 + index]
    args, kwargs = _call(net, inputs)
    error = difference(level(*_clone(inputs)), small(*args, **kwargs))
    if error <= TOLERANCE:
        return
    node = _first_difference(level, inputs, small, args, kwargs, prefix=f"level{index}_")
    name = net.levels[index].name
    raise VerificationError(
        f"level {index} ({name}) differs by {error:.1e} between the model and its extract, "
        f"first at {_where(net, node)}. {_ADVICE}"
    )


def _first_difference(
    reference: fx.GraphModule,
    inputs: tuple[Any, ...],
    other: fx.GraphModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    prefix: str = "",
) -> str | None:
    """The first node of `reference`, in its order, whose value differs from that of the same node in `other`."""
    expected = _values(reference, inputs)
    found = _values(other, _positional(other, args, kwargs or {}))
    for name, value in expected.items():
        match = found.get(name.removeprefix(prefix), found.get(name))
        if isinstance(value, Tensor) and isinstance(match, Tensor) and difference(value, match) > TOLERANCE:
            return name
    return None


def _values(module: fx.GraphModule, inputs: tuple[Any, ...]) -> dict[str, Any]:
    recorder = _Recorder(module)
    recorder.run(*_clone(inputs))
    return recorder.values


class _Recorder(fx.Interpreter):
    """Keeps what every node computes; parameters and inputs are left out, for they may be views on one side only."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op in ("call_function", "call_module"):
            self.values[n.name] = _clone(value)
        return value


def _positional(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    names = [str(node.target) for node in module.graph.find_nodes(op="placeholder")]
    return (*args, *(kwargs[name] for name in names[len(args) :]))


def _run_backbone(model: nn.Module, captured: Captured, inputs: tuple[Tensor, ...]) -> Tensor:
    args, kwargs = Calling.of(captured).arguments(_clone(inputs), captured.signature)
    with _evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = flatten(model(*args, **kwargs))[0][captured.signature.prediction]
    assert isinstance(result, Tensor)
    return result


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    with suppress(NotImplementedError):  # modules made of exported programs have one mode
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _where(net: AnytimeModel, name: str | None) -> str:
    origins = {node.name: node.meta.get("origin") for node in net.rewritten.program.graph.nodes}
    return f"node {name} ({origins.get(name or '') or 'of unknown origin'})"


def _call(net: AnytimeModel, inputs: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return net.calling.arguments(_clone(inputs), net.captured.signature)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _clone(value: Any) -> Any:
    """Copies of tensors: a model may write to its inputs."""
    return fx.node.map_aggregate(value, lambda x: x.clone() if isinstance(x, Tensor) else x)
