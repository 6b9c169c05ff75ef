"""What holds for every backbone and every scheme, over generated ones.

The default suite repeats the same examples; the tests marked `slow` search for new ones.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, reject
from torch import Tensor, nn

from anytimeify.compiler import transform
from anytimeify.contract import spec
from anytimeify.errors import SchemeError
from anytimeify.passes.importance import importance
from anytimeify.passes.options import Options
from anytimeify.passes.rewrites.fold import fold
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.passes.rewrites.narrow import narrow
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.rewrites.reorder import reorder
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.runtime.compiled import compiled
from anytimeify.runtime.model import AnytimeModel
from anytimeify.testing import (
    Backbone,
    Stage,
    assert_costs_increase,
    assert_exactly_thin,
    assert_full_equals_backbone,
    assert_gradients_add_up,
    assert_levels_equal_extracts,
    assert_prefixes_nest,
    assert_round_trip,
    assert_sites_nested,
    backbones,
    blocks,
    entries,
    schemes,
)
from anytimeify.verification import difference
from tests.examples import examples

# Double precision, so that a difference is a mistake and never rounding that a small norm blew up.
TOLERANCE = 1e-10
BATCH = 7

few = examples(40)
fewer = examples(10)
many = examples(700, 700, derandomize=False)


def double(backbone: Backbone) -> nn.Module:
    return backbone.build().double().eval()


def inputs(backbone: Backbone, batch: int = 2) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in backbone.example_inputs(batch))


REFUSALS = ("keeps as many", "no axis", "names no axis group", "would be computed for every level")


@contextmanager
def refusals() -> Iterator[None]:
    """Widths that leave nothing to narrow, or make equal levels, are refused, and triangles of which little would be
    computed once; such examples are drawn again."""
    try:
        yield
    except SchemeError as error:
        if not any(reason in str(error) for reason in REFUSALS):
            raise
        reject()


def anytime(backbone: Backbone, scheme: NestedChannels, *, verify: bool = False) -> tuple[AnytimeModel, nn.Module]:
    model = double(backbone)
    with refusals():
        return transform(model, scheme, inputs(backbone), verify=verify), model


def holds_together(backbone: Backbone, scheme: NestedChannels) -> None:
    net, model = anytime(backbone, scheme)
    assert_stays_canonical(net, scheme)
    wide = inputs(backbone, BATCH)
    untouched = scheme.order == "index"
    if net.exact:
        assert_full_equals_backbone(net, model, wide, same_weights=untouched, tolerance=TOLERANCE)
    else:
        assert_prefixes_nest(net, wide)
        assert_streams_the_same(net, wide)
    assert_levels_equal_extracts(net, wide, tolerance=TOLERANCE)
    assert_costs_increase(net)
    assert_sites_nested(net)
    assert_gradients_add_up(net, tolerance=1e-8)
    if "drop=0.25" not in repr(backbone):
        assert_gradients_add_up(net, wide, training=True, tolerance=1e-6)
    with tempfile.TemporaryDirectory() as folder:
        assert_round_trip(net, folder, wide, tolerance=TOLERANCE)
    if net.exact:
        assert_a_level_is_thin(net, backbone, model, scheme)


def assert_streams_the_same(net: AnytimeModel, given: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        together = net.eval()(*given).levels
        for expected, (level, prediction) in zip(together, net.stream(*given), strict=True):
            assert difference(expected, prediction) <= TOLERANCE, f"{level} streamed"


def assert_a_level_is_thin(net: AnytimeModel, backbone: Backbone, model: nn.Module, scheme: NestedChannels) -> None:
    """Of two levels made from the same capture, at a width that the constructor of thin networks can build."""
    rounding = scheme.rounding
    possible = (
        width for width in (*scheme.widths[:-1], 0.5, 0.25, 0.75) if backbone.exact(width, multiple_of=rounding)
    )
    width = next(possible, None)
    if width is None:
        return
    captured, plain = net.captured, NestedChannels(widths=(width, 1.0), multiple_of=rounding)
    ordered = copy.deepcopy(model)  # the capture may be in another order
    ordered.load_state_dict({name: captured.program.tensors[name] for name in model.state_dict()})
    with refusals():
        rewritten = plain.apply(captured, net.axes)
    small = AnytimeModel(compiled(captured, net.axes, plain, rewritten, Options())).eval()
    thin = backbone.thin(width, ordered, multiple_of=rounding).eval()
    assert_exactly_thin(small, 0, thin, inputs(backbone, BATCH), tolerance=TOLERANCE)


def assert_stays_canonical(net: AnytimeModel, scheme: NestedChannels) -> None:
    """The table of what is canonical holds after every pass."""
    captured, axes = net.captured, net.axes
    spec.verify(captured.program, after="capture")
    ordered = reorder(captured, axes, importance("l1", captured, axes, scheme.where))
    spec.verify(ordered.program, after="reorder")
    for kept in scheme.kept(axes)[:-1]:
        spec.verify(narrow(captured.program, axes, kept), after="narrow")
    rewritten = scheme.apply(ordered, axes).program
    spec.verify(rewritten, after="nested channels")
    for level in range(len(net.levels)):
        level_program = project(rewritten, [level])
        spec.verify(level_program, after="project")
        folded = fold(level_program)
        spec.verify(folded, after="fold")
        spec.verify(fold_batch_norms(folded), after="fold batch norms")


# Statistics of a batch norm over a concatenation, which three levels write back into.
CONCATENATED = Backbone(
    (Stage(entries.Conv(), 4), Stage(entries.Padded(before=0, after=2, stride=1), 6), Stage(entries.Separable(), 4)),
    entries.PoolHead(),
)


# The channels between a convolution and a transposed one are an axis of their own, rounded apart from the stream's.
UPSAMPLED = Backbone(
    (
        Stage(entries.Conv(), 8),
        Stage(entries.Padded(before=0, after=1, stride=1), 8, (blocks.Pyramid("transposed"),)),
        Stage(entries.Conv(), 8),
    ),
    entries.PoolHead(),
)


@few
@example(UPSAMPLED, NestedChannels(widths=(0.5, 1.0)))
@example(CONCATENATED, NestedChannels(widths=(0.3, 0.6, 1.0), norms="shared"))
@given(backbones(), schemes())
def test_model_holds_together(backbone: Backbone, scheme: NestedChannels) -> None:
    holds_together(backbone, scheme)


@fewer
@given(backbones(), schemes(connectivity="triangular", where="all"))
def test_triangle_holds_together(backbone: Backbone, scheme: NestedChannels) -> None:
    holds_together(backbone, scheme)


@pytest.mark.slow
@many
@given(backbones(4, 3), schemes())
def test_model_holds_together_at_length(backbone: Backbone, scheme: NestedChannels) -> None:
    holds_together(backbone, scheme)


@pytest.mark.slow
@many
@given(backbones(4, 3), schemes(connectivity="triangular", where="all"))
def test_triangle_holds_together_at_length(backbone: Backbone, scheme: NestedChannels) -> None:
    holds_together(backbone, scheme)
