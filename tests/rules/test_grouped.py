"""Grouped matrix products of experts, and rules of operators that are known by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.rules import axis_rule, rule_of
from anytimeify.rules.table import of_other_libraries
from anytimeify.testing import (
    assert_exactly_thin,
    assert_full_equals_backbone,
    assert_gradients_add_up,
    assert_levels_equal_extracts,
    randomise,
)
from tests.rules.test_every_rule import f, one_call, run_rule
from tests.rules.thin_copy import copy_blocks

aten = torch.ops.aten
EXPERTS, TOKENS = 3, 6


def native(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """torch exports it in half precision alone."""
    return torch._grouped_mm(rows.bfloat16(), matrices.bfloat16(), offs=ends).to(rows.dtype)


def of_transformers() -> Callable[..., Any]:
    pytest.importorskip("transformers.integrations.moe")
    product: Callable[..., Any] = torch.ops.transformers.grouped_mm_fallback
    return product


class Experts(nn.Module):
    """Every token goes to the expert that likes it best."""

    def __init__(self, product: Callable[..., Any], share: int = 1) -> None:
        super().__init__()
        self.product = product
        self.embed, self.router = nn.Linear(4, 16 // share), nn.Linear(16 // share, EXPERTS)
        self.up = nn.Parameter(torch.empty(EXPERTS, 32 // share, 16 // share))  # the transposed ones of transformers
        self.down = nn.Parameter(torch.empty(EXPERTS, 32 // share, 16 // share))
        self.head = nn.Linear(16 // share, 5)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        tokens = self.embed(x).reshape(n * TOKENS, -1)
        scores = self.router(tokens).softmax(-1)
        chosen = scores.max(-1)
        order = torch.argsort(chosen.indices)
        counts = torch.histc(chosen.indices.float(), EXPERTS, 0, EXPERTS - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        hidden = self.product(tokens[order], self.up.transpose(1, 2), ends).relu()
        result = self.product(hidden, self.down, ends) * chosen.values[order].unsqueeze(-1)
        back = torch.zeros_like(tokens).index_put([order], result)
        logits: Tensor = self.head((tokens + back).reshape(n, TOKENS, -1).mean(1))
        return logits


def inputs() -> tuple[Tensor]:
    return (torch.randn(3, TOKENS, 4, generator=torch.Generator().manual_seed(1)),)


def test_half_level_is_the_half_width_constructor() -> None:
    product = of_transformers()
    full = randomise(Experts(product)).eval()
    net = transform(full, NestedChannels((0.5, 1.0)), inputs())
    assert_exactly_thin(net, 0, copy_blocks(full, Experts(product, 2).eval()), inputs())
    assert_full_equals_backbone(net, full, inputs())
    assert_levels_equal_extracts(net, inputs())
    assert_gradients_add_up(net, inputs())
    per_token = [4 * n + EXPERTS * n + 2 * (n * 2 * n) for n in (8, 16)]
    macs = [TOKENS * products + 5 * n for products, n in zip(per_token, (8, 16), strict=True)]
    assert [level.cost.macs for level in net.levels] == macs


def test_experts_are_pinned() -> None:
    axes = analyse(capture(Experts(of_transformers()), inputs()).program)
    assert {(group.name, group.size, group.quantum) for group in axes.narrowable} == {("embed", 16, 1), ("up", 32, 1)}
    assert not axes.unknown


def test_rows_are_cut_in_steps_of_16_bytes() -> None:
    axes = analyse(capture(Experts(native), inputs()).program)
    assert {(group.size, group.quantum) for group in axes.narrowable} == {(16, 8), (32, 8)}
    assert not axes.unknown
    net = transform(randomise(Experts(native)), NestedChannels((0.1, 1.0)), inputs(), verify=False)
    small = net.extract(0)
    assert small.state_dict()["embed.weight"].shape == (8, 4)
    assert small(*inputs()).shape == (3, 5)


def test_rows_and_matrices_keep_their_number() -> None:
    program, _ = one_call(aten._grouped_mm.default, (f(7, 16), f(2, 16, 8), torch.tensor([3, 7], dtype=torch.int32)))
    pins = {(site.tensor, site.dim): group.pin for group in analyse(program).groups for site in group.sites}
    assert {place: pin.reason for place, pin in pins.items() if pin is not None and place[0] in ("t0", "t1")} == {
        ("t0", 0): "rows in runs",
        ("t1", 0): "a matrix for every run of rows",
    }


def test_runs_of_columns_are_pinned() -> None:
    offsets = torch.tensor([4, 8], dtype=torch.int32)
    assert run_rule(aten._grouped_mm.default, (f(7, 16), f(2, 16, 8), offsets * 7 // 8), 0.5)
    assert not run_rule(aten._grouped_mm.default, (f(4, 8), f(8, 4), offsets), 0.5)


def test_an_operator_of_another_library_is_known_by_name() -> None:
    @torch.library.custom_op("anytimeify_tests::rows_times", mutates_args=())
    def rows_times(x: Tensor, w: Tensor) -> Tensor:
        return x @ w

    target = torch.ops.anytimeify_tests.rows_times.default
    assert rule_of(target) is None
    axis_rule("anytimeify_tests.rows_times.default", "n i, i o -> n o", macs="n i o", later=True)
    axis_rule(target, "n i, i o -> n o", macs="n i o")  # once more, as in a cell of a notebook
    with pytest.raises(ValueError, match="has a rule already"):
        axis_rule(aten.relu.default, "n -> n")
    with pytest.raises(ValueError, match=r"no operation 'aten\.rleu\.default'"):
        axis_rule("aten.rleu.default", "n -> n")
    assert run_rule(target, (f(4, 8), f(8, 6)), 0.5)
    assert rule_of(len) is None
    assert rule_of(aten.relu.default) is not None


def test_the_grouped_product_of_transformers() -> None:
    pytest.importorskip("transformers.integrations.moe")
    assert "transformers.grouped_mm_fallback.default" in of_other_libraries()
    target = torch.ops.transformers.grouped_mm_fallback.default
    for width in (0.1, 0.5):
        assert run_rule(target, (f(7, 6), f(3, 6, 5), torch.tensor([2, 2, 7])), width)
