"""Translation validation: the numbers of a model against those of its backbone, on the example inputs, in eval mode.

Two programs agree when no element differs by more than 1e-5 of the largest magnitude of the reference. Networks with
random weights may amplify rounding beyond that, or overflow, and half precision rounds by more: where the model's own
precision says that they differ, or gives anything that is not finite, both are run once more in double precision, and
that decides. A model that insists on its own precision (it casts to it) is judged by what that precision rounds off.
Where the backbone draws random numbers in eval mode, every operation draws the same ones on both sides (`SameDraws`).
Infinities and NaNs agree with themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from anytimeify._torch import flatten
from anytimeify.capture.compare import buffers_kept, difference, randomness, seeded, tolerance
from anytimeify.capture.same_draws import same_draws
from anytimeify.codegen.call_signature import CallSignature
from anytimeify.codegen.to_modules import to_modules
from anytimeify.errors import AnytimeWarning, VerificationError
from anytimeify.ir import Captured, Program, TensorType, names
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.passes.rewrites.project import project
from anytimeify.rules.training import draws, trains
from anytimeify.runtime.model import AnytimeModel
from anytimeify.verification.precision import ADVICE, TOLERANCE, cast_limit, clone, double, in_double, with_batch
from anytimeify.verification.tensors import furthest, tensors
from anytimeify.verification.training import verify_training

__all__ = ["difference", "verify"]

_FIXED_BATCH = (
    "its forward() decides something by the size of the batch, of which the graph holds one side. Take that out of "
    "forward(), or pass dynamic_shapes={} to fix the size of the batch as in the example"
)


def verify(
    net: AnytimeModel, *models: nn.Module | ExportedProgram, references: Sequence[Tensor | None] = (None,)
) -> None:
    """Checks a fresh model; `VerificationError` names the first node that differs.

    1. The full level equals the backbone, `models[0]`, or one level each of `models`. A program that was exported in
       training mode cannot be run in eval mode, and is left out.
       It does so for a batch of another size too, where the batch is dynamic.
       What is the backbone on other inputs (smaller ones) equals the backbone on those, if it takes them.
    2. Every level run inside the joint graph equals the same level extracted.
    3. The full level trains as the backbone does: see `anytimeify.verification.training`.

    `references` are the backbones' predictions where they are known already. Training flags are afterwards as before;
    the backbones are only called.
    """
    inputs = net._backbone.example_inputs
    with _evaluating(net), torch.no_grad(), seeded(), same_draws(net.captured.program):
        args, kwargs = _call(net, inputs)
        outputs = net(*args, **kwargs)
        levels = clone(
            tuple(
                tensors(outputs.results[index] if outputs.results else given)
                for index, given in enumerate(outputs.levels)
            )
        )
        for place, (model, reference) in enumerate(zip(models, references, strict=True)):
            backbone = _eval_form(model)
            if backbone is not None and net.exact:
                full = levels[net.backbones[place]]
                known = None if reference is None or net.results is not None else [reference]
                _check_full(net, place, backbone, full if net.taxonomy is None else full[:1], inputs, known)
                _check_other_batch(net, place, backbone)
                _check_other_inputs(net, backbone)
        for level, granularity, given in _given(net, levels):
            small = net._extract(level, net._definition.granularity(level, granularity), copied=False)
            args, kwargs = _call(net, inputs)
            result = small(*args, **kwargs)
            if not _agree(given, tensors(result)):
                _check_level_again(net, level, granularity, furthest(given, tensors(result)))
            if outputs.results:
                _check_structure(net, level, outputs.results[level], result)
    verify_training(net, *models)


def _given(net: AnytimeModel, levels: Sequence[list[Tensor]]) -> Iterator[tuple[int, str | None, list[Tensor]]]:
    """What every level gives: of a taxonomy, each of its predictions alone."""
    for index, given in enumerate(levels):
        if net.taxonomy is None:
            yield index, None, given
        else:
            for name, prediction in zip(net.granularities[index], given, strict=True):
                yield index, name, [prediction]


def _check_structure(net: AnytimeModel, index: int, given: Any, result: Any) -> None:
    """What are no tensors: containers, and constants."""
    (leaves, spec), (others, other) = flatten(given), flatten(result)
    pairs = [pair for pair in zip(leaves, others, strict=False) if not isinstance(pair[0], Tensor)]
    if spec != other or any(isinstance(found, Tensor) or found != leaf for leaf, found in pairs):
        raise VerificationError(
            f"level {index} ({net.levels[index].name}) returns {spec}, and its extract {other}. {ADVICE}"
        )


def _eval_form(model: nn.Module | ExportedProgram) -> nn.Module | None:
    if isinstance(model, nn.Module):
        return model
    for node in model.graph.nodes:
        if trains(node) or draws(node):
            return None
    return model.module()


def _agree(reference: Sequence[Tensor], result: Sequence[Tensor]) -> bool:
    """Whether the model's own precision is enough to say that two results agree."""
    return furthest(reference, result) <= TOLERANCE and all(bool(one.isfinite().all()) for one in reference)


def _check_other_batch(net: AnytimeModel, place: int, model: nn.Module) -> None:
    """Where a forward pass looks at the size of its batch, the graph knows one side of that only."""
    captured = net._backbone
    if captured.batch is None:
        return
    for count in _other_counts(captured):
        inputs = with_batch(captured, captured.example_inputs, count)
        try:
            reference = _run_backbone(model, captured, inputs)
        except Exception:  # the backbone does not take batches of this size
            continue
        try:
            found = _run_level(net, net.backbones[place], _finest(net), inputs)
        except Exception as error:
            raise VerificationError(
                f"the full level does not run on a batch of {count}, which the backbone takes: {error}. {_FIXED_BATCH}"
            ) from error
        _check_full(net, place, model, found, inputs, reference)
        return


def _check_other_inputs(net: AnytimeModel, model: nn.Module) -> None:
    """What is the backbone on other inputs, against the backbone: the first tensor of each. Warns of what the backbone
    does not take."""
    captured = net.captured
    for name, program, inputs in net.scheme.on_other_inputs(captured, net.axes):
        try:
            reference = _run_backbone(model, captured, inputs)[:1]
        except Exception as error:
            warnings.warn(
                f"{name} was not compared with the backbone, which does not take these inputs ({error}); the level "
                "was compared with its extract alone",
                AnytimeWarning,
                stacklevel=4,
            )
            continue
        small = to_modules(program, training=False)
        found = small(*clone(captured.example_inputs))
        if _agree(reference, found):
            continue
        gap, limit = furthest(reference, found), _rounding(captured.program)
        with suppress(Exception):  # a model that cannot be copied or that insists on its own precision
            reference = _run_backbone(in_double(model), captured, tuple(map(double, inputs)))[:1]
            found = in_double(small)(*map(double, clone(captured.example_inputs)))
            gap, limit = furthest(reference, found), cast_limit(captured.program)
        if gap > limit:
            raise VerificationError(
                f"{name} differs by {gap:.1e} from the backbone on the same inputs: the backbone's forward() computes "
                "something from their size that the graph holds as a number"
            )


def _other_counts(captured: Captured) -> list[int]:
    """Other sizes of a batch to try, one after the other where the backbone refuses."""
    single = with_batch(captured, captured.example_inputs, 1)
    one = all(x.shape == y.shape for x, y in zip(single, captured.example_inputs, strict=True))
    least, most = captured.batch_range
    wanted = (3, 2) if one else (1, 5)
    return list(dict.fromkeys(max(least, count if most is None else min(count, most)) for count in wanted))


def _check_full(
    net: AnytimeModel,
    place: int,
    model: nn.Module,
    found: Sequence[Tensor],
    inputs: tuple[Tensor, ...],
    reference: Sequence[Tensor] | None,
) -> None:
    level = net.backbones[place]
    if reference is None:
        reference = _run_backbone(model, net._backbone, inputs)
    if _agree(reference, found):
        return
    captured = net.captured
    own = inputs is net._backbone.example_inputs
    error, limit = furthest(reference, found), _rounding(captured.program)
    inputs = tuple(map(double, inputs))
    try:
        reference = _run_backbone(in_double(model), captured, inputs)
        found = _run_level(in_double(net), level, _finest(net), inputs)
    except Exception:  # a model that cannot be copied or that insists on its own precision: that verdict stands
        pass
    else:
        error, limit = furthest(reference, found), cast_limit(captured.program)
    if error <= limit:
        return
    _refuse_randomness(captured.program, error)
    if not own:
        count = next((len(x) for x in inputs if x.dim()), 0)
        raise VerificationError(
            f"for a batch of {count} the full level differs from the backbone by {error:.1e}, and not for the example "
            f"inputs: {_FIXED_BATCH}"
        )
    kept = [place] if captured.results is None else captured.results.evaluation.outputs
    source = to_modules(project(captured.program, kept), training=False)
    whole = net.graph_of(level, _finest(net))
    node = _first_difference(source, captured.example_inputs, whole, captured.example_inputs)
    if node is None:
        raise VerificationError(
            f"the captured graph, before any rewrite, differs from the backbone by {error:.1e} in eval mode: the "
            f"backbone computes something in eval mode that it does not in training mode, or is random. {ADVICE}"
        )
    raise VerificationError(
        f"the full level differs from the backbone by {error:.1e}, first at {_where(net, node)}. {ADVICE}"
    )


def _check_level_again(net: AnytimeModel, index: int, granularity: str | None, error: float) -> None:
    """A level that differs from its extract by `error`, in double precision."""
    program = net.captured.program
    limit, inputs = _rounding(program), net.captured.example_inputs
    level, small = net.graph_of(index, granularity), net.extract(index, granularity=granularity)
    try:
        wide, doubles = in_double(net), tuple(double(x) for x in inputs)
        args, kwargs = _call(net, doubles)
        result = wide.extract(index, granularity=granularity)(*args, **kwargs)
        error = furthest(_run_level(wide, index, granularity, doubles), tensors(result))
    except Exception:  # the net insists on its own precision: that verdict stands
        args, kwargs = _call(net, inputs)
    else:
        level, small = wide.graph_of(index, granularity), wide.extract(index, granularity=granularity)
        inputs, limit = doubles, cast_limit(program)
    if error <= limit:
        return
    _refuse_randomness(program, error)
    node = _first_difference(level, inputs, small, args, kwargs, prefix=names.level_prefix(index))
    name = net.levels[index].name + (f", {granularity}" if granularity is not None else "")
    raise VerificationError(
        f"level {index} ({name}) differs by {error:.1e} between the model and its extract, "
        f"first at {_where(net, node)}. {ADVICE}"
    )


def _finest(net: AnytimeModel) -> int | None:
    """The granularity of the backbone's own prediction."""
    return None if net.taxonomy is None else 0


def _refuse_randomness(program: Program, error: float) -> None:
    found = randomness(program)
    if found is not None:
        raise VerificationError(
            f"the backbone is random in eval mode, and the result differs from it by {error:.1e} even where every "
            f"operation draws the same numbers: {found}. Let it do so in train mode only (if self.training: ...); "
            "transform(..., verify=False) takes it as it is"
        )


def _rounding(program: Program) -> float:
    """What the least precise type of the program rounds off."""
    kinds = (type_of(node) for node in program.graph.nodes)
    return max([TOLERANCE, *(tolerance(kind.dtype) for kind in kinds if isinstance(kind, TensorType))])


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
    recorder.run(*clone(inputs))
    return recorder.values


class _Recorder(fx.Interpreter):
    """Keeps what every node computes; parameters and inputs are left out, for they may be views on one side only."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op in ("call_function", "call_module"):
            self.values[n.name] = clone(value)
        return value


def _positional(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    names = [str(node.target) for node in module.graph.find_nodes(op="placeholder")]
    return (*args, *(kwargs[name] for name in names[len(args) :]))


def _run_level(
    net: AnytimeModel, index: int, granularity: int | str | None, inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    result = net.graph_of(index, granularity)(*clone(inputs))
    return tensors(result if net.results is None else net.results.evaluation.filled(result))


def _run_backbone(model: nn.Module, captured: Captured, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    args, kwargs = CallSignature.of(captured).arguments(clone(inputs), captured.signature)
    with _evaluating(model), buffers_kept(model), seeded():
        leaves = flatten(model(*args, **kwargs))[0]
    return tensors(leaves if captured.results is not None else leaves[captured.signature.prediction])


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
    origins = {node.name: origin_of(node) for node in net.rewritten.program.graph.nodes}
    return f"node {name} ({origins.get(name or '') or 'of unknown origin'})"


def _call(net: AnytimeModel, inputs: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return net.call_signature.arguments(clone(inputs), net._backbone.signature)
