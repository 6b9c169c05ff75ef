"""Hypothesis strategies: random backbones and random schemes. Both shrink to fewer blocks and plainer fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anytimeify.errors import MissingExtraError

try:
    from hypothesis import strategies as st
except ImportError as error:  # pragma: no cover
    raise MissingExtraError("hypothesis", "dev", "generating random backbones") from error

from anytimeify.testing import blocks as b
from anytimeify.testing import entries as e
from anytimeify.testing import token_blocks as t
from anytimeify.testing.backbone import Backbone, Stage

if TYPE_CHECKING:
    from anytimeify.passes.schemes.nested_channels import NestedChannels

__all__ = ["backbones", "schemes", "widths"]

# Sizes collide on purpose: channels equal to the side of the image, to the tokens (4, 16), to a batch or window of 7.
CHANNELS = st.sampled_from([8, 4, 6, 12, 16, 7, 5, 2])
HIDDEN = st.sampled_from([4, 8, 6, 3, 16, 7])
ACTIVATIONS = st.sampled_from(["relu", "relu in place", "gelu", "silu", "relu6", "hardswish", "leaky", "tanh", "prelu"])
TOKEN_NORMS = st.sampled_from(["layer", "rms", "none"])
DROPS = st.sampled_from([0.0, 0.0, 0.25])


def image_norms(side: int, *, groups: bool) -> st.SearchStrategy[str]:
    """Norms that an image of this size can have: a norm over positions needs more than one."""
    kinds = ["batch", "none", "layer", "rms", "one group"]
    return st.sampled_from(kinds + ["group"] * groups + ["instance"] * (side > 1))


def attentions() -> st.SearchStrategy[t.SelfAttention]:
    return st.builds(
        t.SelfAttention,
        heads=st.sampled_from([2, 4, 1, 3]),
        head_size=st.sampled_from([4, 2, 3, 8]),
        form=st.sampled_from(["unbind", "chunk", "separate", "index"]),
        compute=st.sampled_from(["fused", "matmul", "einsum"]),
        norm=TOKEN_NORMS,
        bias=st.booleans(),
        head_norm=st.booleans(),
        position_bias=st.booleans(),
        drop=DROPS,
    )


def image_blocks(side: int, group_width: int, *, plain: bool) -> st.SearchStrategy[b.Block]:
    """Blocks on an image. `plain`: the stream is one factor, so that grouped layers can line up with it."""
    norms = image_norms(side, groups=plain)
    units, unit = st.integers(1, 4), st.sampled_from([1, 2, 3, 4])
    kernels = st.sampled_from([3, 1, 5])
    choices: list[st.SearchStrategy[b.Block]] = [
        st.builds(
            b.Basic,
            units=units,
            unit=unit,
            kernel=kernels,
            norm=norms,
            activation=ACTIVATIONS,
            pre=st.booleans(),
            in_place=st.booleans(),
            drop=DROPS,
        ),
        st.builds(
            b.Bottleneck,
            units=units,
            unit=unit,
            kernel=kernels,
            split=st.booleans(),
            norm=norms,
            activation=ACTIVATIONS,
            excite=st.sampled_from([0, 2, 3]),
            drop=DROPS,
        ),
        st.builds(b.Excite, hidden=st.sampled_from([2, 3]), linear=st.booleans()),
        st.builds(b.Gated, hidden=HIDDEN, form=st.sampled_from(["chunk", "split", "glu", "narrow"])),
        st.builds(
            b.ConvNeXt,
            hidden=HIDDEN,
            kernel=kernels,
            norm=st.sampled_from(["layer", "rms"]),
            scale=st.sampled_from(["last", "image", "none"]),
            drop=DROPS,
        ),
        st.builds(
            b.Dense,
            growths=st.lists(st.sampled_from([4, 3, 2, 8]), min_size=1, max_size=3).map(tuple),
            norm=image_norms(side, groups=False),
            bottleneck=st.sampled_from([0, 6]),
            front=st.booleans(),
        ),
        st.builds(t.SpatialAttention, attentions()),
    ]
    if plain or group_width == 1:
        choices.append(st.builds(b.Grouped, kernel=kernels, dilation=st.sampled_from([1, 2]), norm=norms))
    if plain and group_width > 1:
        choices.append(st.just(b.Shuffled()))
    if side % 2 == 0 and side > 2:
        choices += [
            st.builds(b.Pyramid, mode=st.sampled_from(["nearest", "bilinear", "transposed"])),
            st.just(b.SpaceToDepth()),
        ]
    windows = [size for size in (2, 4, 7) if side % size == 0]
    if windows:
        window = st.sampled_from(windows)
        choices.append(st.builds(t.WindowAttention, attentions(), window=window, shift=st.booleans()))
    return with_tied(st.one_of(choices))


def with_tied(blocks: st.SearchStrategy[b.Block]) -> st.SearchStrategy[b.Block]:
    """Now and then a block is used twice."""
    return st.one_of(blocks, blocks, blocks.map(lambda block: block if isinstance(block, b.Dense) else b.Tied(block)))


def token_blocks() -> st.SearchStrategy[b.Block]:
    blocks = st.one_of(
        attentions(),
        st.builds(t.Mlp, hidden=HIDDEN, norm=TOKEN_NORMS, gate=st.sampled_from(["", "glu", "chunk"]), drop=DROPS),
        st.builds(t.TokenMixing, hidden=HIDDEN, norm=TOKEN_NORMS),
        st.builds(t.TokenConv, depthwise=st.booleans()),
        st.just(t.TokenScale()),
    )
    return with_tied(blocks)


def image_entries(side: int, *, first: bool, groups: bool) -> st.SearchStrategy[e.Entry]:
    stride = st.sampled_from([1, 2] if side > 2 else [1])
    norms = image_norms(side // 2, groups=groups)
    choices: list[st.SearchStrategy[e.Entry]] = [
        st.builds(
            e.Conv,
            kernel=st.sampled_from([3, 1, 5]),
            stride=stride,
            norm=norms,
            activation=ACTIVATIONS,
            pool=st.sampled_from(["", "max", "avg"] if side >= 8 else [""]),
        )
    ]
    if side % 2 == 0:
        sizes = st.sampled_from([2, 4] if side % 4 == 0 else [2])
        patches = st.builds(e.Patches, patch=sizes, class_token=st.booleans(), positions=st.booleans())
        choices.append(patches)
    if not first:
        choices += [
            st.builds(e.Projection, stride=stride, norm=norms),
            st.builds(e.Separable, stride=stride),
            st.builds(e.Padded, before=st.integers(0, 3), after=st.integers(1, 3), stride=stride),
            st.builds(e.ShuffleUnits, stride=stride, units=st.integers(1, 4)),
        ]
        if side % 2 == 0:
            choices.append(st.just(e.Unshuffled()))
    return st.one_of(choices)


def token_entries(side: int, *, square: bool) -> st.SearchStrategy[e.Entry]:
    choices: list[st.SearchStrategy[e.Entry]] = [st.builds(e.TokenLinear, norm=TOKEN_NORMS)]
    if square:
        choices.append(st.just(e.Unpatch()))
    if square and side % 2 == 0:
        choices.append(st.just(e.Merge()))
    return st.one_of(choices)


def heads(side: int, tokens: int) -> st.SearchStrategy[e.Head]:
    if tokens:
        pick = st.sampled_from(["first", "mean"])
        return st.one_of(
            st.builds(e.TokenHead, norm=TOKEN_NORMS, pick=pick, drop=DROPS),
            st.builds(e.FlattenHead, hidden=st.sampled_from([0, 6])),
        )
    pool = st.sampled_from(["mean", "adaptive", "max"])
    choices: list[st.SearchStrategy[e.Head]] = [
        st.builds(e.PoolHead, pool=pool, hidden=st.sampled_from([0, 6]), drop=DROPS),
        st.just(e.ConvHead()),
        st.just(e.DenseHead()),
    ]
    if side <= 8:
        choices.append(st.builds(e.FlattenHead, hidden=st.sampled_from([0, 6]), drop=DROPS))
    return st.one_of(choices)


@st.composite
def backbones(draw: st.DrawFn, max_stages: int = 3, max_blocks: int = 2) -> Backbone:
    """A `Backbone` of one to `max_stages` stages with up to `max_blocks` blocks each, on small images."""
    side = input_side = draw(st.sampled_from([8, 4, 16, 14]))
    tokens, stages = 0, []
    for index in range(draw(st.integers(1, max_stages))):
        group_width = draw(st.sampled_from([1, 2, 4]))
        channels = group_width * draw(CHANNELS) if group_width == 1 else group_width * draw(st.sampled_from([4, 2, 3]))
        entry: e.Entry
        if tokens:
            entry = draw(token_entries(side, square=tokens == side**2))
        else:
            entry = draw(image_entries(side, first=index == 0, groups=True))
        plain = not isinstance(entry, e.Padded | e.ShuffleUnits)
        if isinstance(entry, e.ShuffleUnits):
            channels = 2 * max(2, channels // 2)
        group_width = group_width if plain else 1
        side, tokens = _after(entry, side, tokens)
        blocks: list[b.Block] = []
        for _ in range(draw(st.integers(0, max_blocks))):
            blocks.append(draw(token_blocks() if tokens else image_blocks(side, group_width, plain=plain)))
            if isinstance(blocks[-1], b.Dense):
                plain = False
                # A grouped layer before a concatenation is fine; after it the stream is no longer one factor.
                group_width = group_width if any(block.grouped for block in blocks) or entry.grouped else 1
                if group_width > 1:
                    break
        stages.append(Stage(entry, channels, tuple(blocks), group_width))
    return Backbone(
        stages=tuple(stages),
        head=draw(heads(side, tokens)),
        inputs=draw(st.sampled_from([3, 1, 4])),
        side=input_side,
        classes=draw(st.sampled_from([5, 4, 8])),
        seed=draw(st.integers(0, 3)),
    )


def _after(entry: e.Entry, side: int, tokens: int) -> tuple[int, int]:
    """The side and the number of tokens after an entry."""
    if isinstance(entry, e.Patches):
        side //= entry.patch
        return side, side**2 + entry.class_token
    if isinstance(entry, e.Merge):
        return side // 2, (side // 2) ** 2
    if isinstance(entry, e.Unpatch):
        return side, 0
    if isinstance(entry, e.Unshuffled):
        return side // 2, 0
    side = -(-side // getattr(entry, "stride", 1))
    return (side // 2 if getattr(entry, "pool", "") else side), tokens


def widths(max_levels: int = 3) -> st.SearchStrategy[tuple[float, ...]]:
    """Sorted distinct width multipliers, ending in 1."""
    lower = st.lists(
        st.sampled_from([0.5, 0.25, 0.75, 0.1, 0.3, 0.6, 0.9]), min_size=1, max_size=max_levels - 1, unique=True
    )
    return lower.map(lambda values: (*sorted(values), 1.0))


def schemes(**fixed: Any) -> st.SearchStrategy[NestedChannels]:
    """Random `NestedChannels`; fields given by keyword are fixed to that value."""
    from anytimeify.passes.schemes.nested_channels import NestedChannels

    fields: dict[str, st.SearchStrategy[Any]] = {
        "widths": widths(),
        "where": st.sampled_from(["all", "inner"]),
        "norms": st.sampled_from(["private", "shared"]),
        "heads": st.sampled_from(["private", "shared"]),
        "order": st.sampled_from(["index", "l1"]),
        "multiple_of": st.sampled_from([1, 2, 3]),
    }
    return st.builds(NestedChannels, **{**fields, **{name: st.just(value) for name, value in fixed.items()}})
