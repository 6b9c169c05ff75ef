"""The pipeline as straight-line code: capture, analyse, prepare, scheme, options, compile, verify. Read this first."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.export import ExportedProgram

from anytimeify import progress, verification
from anytimeify.analysis.axes import Axes, Widths, analyse
from anytimeify.capture import Source, capture
from anytimeify.capture.ownership import Owner
from anytimeify.capture.side_by_side import side_by_side
from anytimeify.codegen.recompute import part_numbers
from anytimeify.codegen.to_modules import norms_without_count
from anytimeify.contract.pass_manager import run_pass
from anytimeify.errors import AnytimeWarning, SchemeError
from anytimeify.ir import Captured
from anytimeify.ir.evidence import Evidence
from anytimeify.passes.estimate import Limits, estimate
from anytimeify.passes.on_meta import refuse_reading_values, refuse_unknown_values
from anytimeify.passes.options import Options
from anytimeify.passes.rewrites.channel_counts import channel_counts
from anytimeify.passes.rewrites.consensus import Consensus
from anytimeify.passes.scheme import Scheme, compose
from anytimeify.process import ONE_AT_A_TIME, without_garbage_search
from anytimeify.runtime.compiled import compiled
from anytimeify.runtime.model import AnytimeModel
from anytimeify.taxonomy import Taxonomy

__all__ = ["transform"]

Model: TypeAlias = nn.Module | ExportedProgram | Source


def transform(
    model: Model | tuple[Model, Model],
    scheme: Scheme | str | Sequence[Scheme | str],
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    loss: nn.Module | None = None,
    verify: bool = True,
    output: int | str | None = None,
    taxonomy: Taxonomy | None = None,
    consensus: Consensus | str | None = None,
    checkpoint: bool = False,
    constants: Literal["keep", "scale"] = "keep",
    consume: bool = False,
    limits: Limits | None = None,
    batches: Iterable[Any] | None = None,
) -> AnytimeModel:
    """Converts a backbone into an anytime model. `model` is not modified and shares no tensor with the result, unless
    it is consumed.

        net = transform(backbone, NestedChannels(widths=(0.25, 0.5, 1.0)), torch.randn(2, 3, 224, 224))

    Parameters
        model: the backbone, or a result of `anytimeify.source`; a pair of them for `MutualDistillation`.
        scheme: which levels to build: an object such as `NestedChannels(widths=(0.25, 0.5, 1.0))`, or a spec string
            such as `"nested-channels{widths=0.25,0.5,1}"`; or a sequence of `NestedDepth` and `NestedChannels` with
            the same number of levels, which are combined level by level.
        example_inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments. Optional if the
            model provides them (timm, torchvision, transformers, exported programs).
        dynamic_shapes: as in `torch.export`; by default the batch is dynamic.
        loss: the training objective; by default the scheme's own.
        verify: compare the result with the backbone. In eval mode, on the example inputs, the full level must equal the
            backbone and every level inside the model must equal its extract, within 1e-5 relative. In train mode,
            without randomness, the prediction, the gradients and the buffers after one step must equal the backbone's,
            and so must the prediction for a batch of another size. A difference raises `VerificationError`. A backbone
            on the meta device has nothing to compare with: `verify=False` gives a model on that device, for which
            `to_empty` and `load_state_dict` of the backbone's checkpoint do the rest.
        output: which tensor of a structured result is the prediction: a position, a field, or a path like `"heads.0"`.
            With `"all"`, levels return everything that the backbone returns, in train mode and in eval mode: see
            `AnytimeModel.forward`. So they do by default where what the backbone returns in train mode does not hold
            the prediction of eval mode.
        taxonomy: coarser classes above those of the backbone. Every level gets one head per granularity, and the
            default loss covers all of them.
        consensus: add a last level that combines all others: `"average"`, `"learned"`, or a `Consensus`.
        checkpoint: at every level, recompute in the backward pass what the backbone runs under
            `torch.utils.checkpoint`. Training then needs less memory and more time.
        constants: what becomes of numbers in `forward()` that were made of a channel count, such as `dim**-0.5`, where
            levels have fewer channels: `"keep"` notes them in the report; `"scale"` lets every level compute with the
            number of its own width, as the same architecture built thin does.
        consume: take over the memory of the backbone's parameters and buffers instead of copying them. Do not use the
            backbone afterwards: it still runs, but what changes the result changes it too (training, loading a state
            dict), until the result moves to another device or type and leaves it behind. Tensors that the backbone
            keeps in one memory with others are copied.

        limits: how large the result may be, by default 100,000 nodes and as many bytes as the machine has. A scheme
            that would make more is refused before it begins.
        batches: batches of (inputs, target), as a data loader gives them, that the orders `taylor` and `activation` of
            nested channels look at, 32 at most. The loss of `taylor` is `loss` with the backbone's prediction alone.

    Raises `CaptureError`, `UnsupportedOpError`, `SchemeError` or `VerificationError`. The result is in train or eval
    mode as the backbone is now. An `AnytimeWarning` says where it trains differently from the backbone.
    """
    chosen = _single(scheme)
    _check_constants(chosen, constants)
    options = Options(taxonomy, Consensus.of(consensus), checkpoint)
    given = tuple(model) if isinstance(model, tuple | list) else (model,)
    models = tuple(one.model if isinstance(one, Source) else one for one in given)
    if example_inputs is None:
        example_inputs = next((one.example_inputs for one in given if isinstance(one, Source)), None)
    if len(models) != chosen.backbones:
        expected = "one backbone" if chosen.backbones == 1 else "a pair of backbones, transform((a, b), ...)"
        raise SchemeError(f"{chosen.name} takes {expected}; {len(models)} were given")
    # Tensors made under a caller's inference mode could never be trained.
    for one in models:
        refuse_reading_values(chosen, one, verify=verify)
    progress.step("capturing", 0.0)
    with ONE_AT_A_TIME, without_garbage_search(), torch.inference_mode(False):
        parts = [
            capture(
                one,
                example_inputs,
                dynamic_shapes=dynamic_shapes,
                output=output,
                copied=False,
                traced=not verify,  # verification computes all that is compared here
            )
            for one in models
        ]
        if len(parts) > 1 and any(part.results is not None for part in parts):
            raise SchemeError(
                "of two backbones, levels return predictions, and not all that the backbones return (output='all', or "
                "a backbone that returns different things in train mode and eval mode): say with output=... which of "
                "the results is the prediction"
            )
        refuse_unknown_values(parts)
        references = [part.reference for part in parts]
        captured = parts[0] if len(parts) == 1 else side_by_side(*parts)
        captured = replace(captured, notes=(*captured.notes, *_recomputation(parts, checkpoint)))
        axes = analyse(captured.program)
        if batches is not None:
            captured = replace(captured, evidence=Evidence(batches, chosen.default_loss() if loss is None else loss))
        chosen, measured = chosen.measured(captured, axes)
        captured = replace(captured, notes=(*captured.notes, measured)) if measured else captured
        captured = channel_counts(captured, axes, _kept(chosen, axes), scale=constants == "scale")
        axes = analyse(captured.program) if constants == "scale" else axes
        (limits or Limits()).check(chosen, captured, axes)
        shares = _shares(chosen, captured, axes, verify)
        progress.step("applying the scheme", shares[0])
        captured = replace(
            run_pass(f"prepare {chosen.name}", chosen.prepare, captured, axes), reference=None, evidence=None
        )
        several, its_axes = options.before(captured, axes)
        rewritten = run_pass(chosen.name, chosen.apply, several, its_axes)
        rewritten = options.after(rewritten, captured, several, chosen)
        captured = captured.losing(*norms_without_count(rewritten.program))
        owner = Owner(models, consume=consume)
        captured = replace(captured, program=owner.owned(captured.program))
        rewritten = replace(rewritten, program=owner.owned(rewritten.program))
        progress.step("building levels", shares[1])
        net = AnytimeModel(compiled(captured, axes, chosen, rewritten, options), loss)
        if isinstance(models[0], nn.Module):
            net.train(models[0].training)
        if verify:
            progress.step("verifying", shares[2])
            verification.verify(net, *models, references=references)
    _warn(captured)
    return net


def _shares(scheme: Scheme, captured: Captured, axes: Axes, verify: bool) -> tuple[float, ...]:
    """Which shares of the work are done before the scheme is applied, levels are built, and the result is verified."""
    found = estimate(scheme, captured, axes) if progress.is_shown() else None
    own = len(captured.program.graph.nodes)
    made = own * scheme.copies if found is None else found.nodes
    steps = (_CAPTURING * own, made, made, _VERIFYING * made if verify else 0.0)
    return tuple(done / sum(steps) for done in accumulate(steps[:-1]))


# What a node takes, beside what it takes to apply a scheme.
_CAPTURING, _VERIFYING = 4.0, 2.0


def _kept(scheme: Scheme, axes: Axes) -> Sequence[Widths]:
    """What levels keep of the axes; nothing where the scheme refuses, which it says when it is applied."""
    try:
        return scheme.kept(axes)
    except SchemeError:
        return ()


def _check_constants(scheme: Scheme, constants: Any) -> None:
    if constants not in ("keep", "scale"):
        raise SchemeError(f"constants={constants!r}: expected keep or scale")
    if constants == "scale" and scheme.shares_values:
        raise SchemeError(
            "constants='scale': under triangular connectivity channels have the same values at every level, so that a "
            "number which they are multiplied with cannot be another one per level; take connectivity='dense'"
        )


def _recomputation(parts: Sequence[Captured], kept: bool) -> Iterator[str]:
    """A note where the backbone recomputes and the result does not, or the other way round."""
    count = sum(len(part_numbers(part.program.graph)) for part in parts)
    if count and not kept:
        several = f"{count} parts" if count > 1 else "one part"
        yield f"recomputation of {several} in the backward pass is left out; transform(..., checkpoint=True) keeps it"
    if kept and not count:
        yield "checkpoint=True changes nothing: the backbone runs nothing under torch.utils.checkpoint in training"


def _warn(captured: Captured) -> None:
    """Says in Python warnings where the result does not train as the backbone does, or takes fewer inputs; the report
    says it too."""
    if captured.limit is not None:
        warnings.warn(f"the result takes only {captured.limit}", AnytimeWarning, stacklevel=3)
    for kept in captured.whole:
        warnings.warn(kept, AnytimeWarning, stacklevel=3)
    for lost in captured.lost:
        warnings.warn(f"the result trains differently from the backbone: {lost}", AnytimeWarning, stacklevel=3)


def _single(scheme: Scheme | str | Sequence[Scheme | str]) -> Scheme:
    listed: list[Any] = list(scheme) if isinstance(scheme, list | tuple) else [scheme]
    if listed and all(isinstance(one, Scheme | str) for one in listed):
        return compose(listed)
    raise SchemeError(f"scheme is {scheme!r}: expected a scheme such as NestedChannels(), or a spec string")
