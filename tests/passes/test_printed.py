"""Rewrites of small networks: the program before and after, as text, and its numbers.

Rewrites with more to test have files of their own; `test_every_rewrite_is_printed.py` lists all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anytimeify import (
    NestedChannels,
    NestedWeights,
    Taxonomy,
)
from anytimeify.analysis.axes import analyse
from anytimeify.analysis.mask_density import recount
from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.ir import Captured, Program
from anytimeify.ir.node_meta import mask_nonzeros_of
from anytimeify.ir.rewritten import Output, Rewritten
from anytimeify.passes.importance import importance
from anytimeify.passes.rewrites.as_before import as_before
from anytimeify.passes.rewrites.consensus import Consensus, add_consensus
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.passes.rewrites.granularities import part_heads
from anytimeify.passes.rewrites.new_head import with_classes
from anytimeify.passes.rewrites.one_writer import one_writer
from anytimeify.passes.rewrites.reorder import reorder
from anytimeify.passes.rewrites.taxonomy import add_heads
from tests.building import run
from tests.printing import applied, calls, lines

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x).relu())
        return result


MLP = """
    body = linear(x, body_weight, body_bias)
    relu = relu(body)
    head = linear(relu, head_weight, head_bias)
    return head
"""
HALF = """
    level0_body_weight_part0 = slice.Tensor(body_weight, 0, 0, 3)
    level0_body_bias_part0 = slice.Tensor(body_bias, 0, 0, 3)
    level0_body = linear(x, level0_body_weight_part0, level0_body_bias_part0)
    level0_relu = relu(level0_body)
    level0_head = linear(level0_relu, anytime_0_head_weight, anytime_0_head_bias)
"""


def captured_mlp() -> Captured:
    torch.manual_seed(0)
    captured = capture(Mlp(), X)
    assert calls(captured.program) == lines(MLP)
    return captured


def halves(captured: Captured) -> Rewritten:
    """Two levels, the first with half of the hidden channels."""
    rewritten = applied(NestedChannels((0.5, 1.0)), captured)
    assert calls(rewritten.program) == lines(MLP)[:-1] + lines(HALF) + ["return level0_head, head"]
    return rewritten


def test_reorder() -> None:
    captured = captured_mlp()
    axes = analyse(captured.program)
    result = reorder(captured, axes, importance("l1", captured, axes))
    assert calls(result.program) == lines(MLP)
    old, new = captured.program.tensors, result.program.tensors
    order = (old["body.weight"].abs().sum(1) + old["head.weight"].abs().sum(0)).argsort(descending=True)
    assert order.tolist() != sorted(order.tolist())
    for name, dim in (("body.weight", 0), ("body.bias", 0), ("head.weight", 1)):
        assert torch.equal(new[name], old[name].index_select(dim, order))
    torch.testing.assert_close(run(result.program, X), run(captured.program, X))


def test_new_head() -> None:
    captured = captured_mlp()
    program = with_classes(captured, analyse(captured.program), 7).program
    assert str(program).replace(captured.batch or "", "n").splitlines() == lines("""
        x = input  # [n, 4]
        head_weight = head.weight  # [7, 6]
        head_bias = head.bias  # [7]
        body_weight = body.weight  # [6, 4]
        body_bias = body.bias  # [6]
        body = linear(x, body_weight, body_bias)  # [n, 6]
        relu = relu(body)  # [n, 6]
        head = linear(relu, head_weight, head_bias)  # [n, 7]
        return head
    """)
    network = Mlp()
    network.head = nn.Linear(6, 7)
    network.load_state_dict(program.tensors)
    torch.testing.assert_close(run(program, X), (network(X),))
    assert program.tensors["body.weight"] is captured.program.tensors["body.weight"]


TAXONOMY = Taxonomy.from_parents([0, 0, 1, 1])
COARSE = "linear(relu, anytime_taxonomy_coarse_head_weight, anytime_taxonomy_coarse_head_bias)"


def test_taxonomy() -> None:
    captured = captured_mlp()
    program = add_heads(captured, analyse(captured.program), TAXONOMY).program
    assert calls(program) == lines(f"""
        body = linear(x, body_weight, body_bias)
        relu = relu(body)
        head = linear(relu, head_weight, head_bias)
        coarse_head = {COARSE}
        granularities = cat([head, coarse_head], 1)
        return granularities
    """)
    (both,) = run(program, X)
    torch.testing.assert_close(both[:, :4], *run(captured.program, X))
    network = Mlp()
    network.head = nn.Linear(6, 2)
    coarse = "anytime.taxonomy.coarse."
    network.load_state_dict(
        {name: program.tensors.get(coarse + name, program.tensors[name]) for name in captured.program.tensors}
    )
    torch.testing.assert_close(both[:, 4:], network(X))


def test_part_heads() -> None:
    captured = captured_mlp()
    rewritten = applied(NestedChannels((0.5, 1.0)), add_heads(captured, analyse(captured.program), TAXONOMY))
    own = "anytime_0_anytime_taxonomy_coarse_head"
    half = [*lines(HALF), f"level0_coarse_head = linear(level0_relu, {own}_weight, {own}_bias)"]
    assert calls(rewritten.program) == [
        *lines(MLP)[:-1],
        f"coarse_head = {COARSE}",
        "granularities = cat([head, coarse_head], 1)",
        *half,
        "level0_granularities = cat([level0_head, level0_coarse_head], 1)",
        "return level0_granularities, granularities",
    ]
    parted = part_heads(rewritten, TAXONOMY, captured.program)
    assert calls(parted.program) == [
        *lines(MLP)[:-1],
        f"coarse_head = {COARSE}",
        *half,
        "return level0_head, head, level0_coarse_head, coarse_head",
    ]
    assert parted.names == tuple(Output("level", level, granularity) for granularity in (0, 1) for level in (0, 1))
    low, full, coarse_low, coarse_full = run(parted.program, X)
    torch.testing.assert_close(
        (torch.cat([low, coarse_low], 1), torch.cat([full, coarse_full], 1)), run(rewritten.program, X)
    )


def test_consensus_average() -> None:
    rewritten = halves(captured_mlp())
    result = add_consensus(rewritten, Consensus("average"))
    assert calls(result.program)[len(calls(rewritten.program)) - 1 :] == lines("""
        consensus_log = log_softmax.int(level0_head, 1)
        consensus_log_1 = log_softmax.int(head, 1)
        consensus_levels = stack([consensus_log, consensus_log_1], 0)
        consensus_total = logsumexp(consensus_levels, [0])
        consensus_average = sub.Tensor(consensus_total, 0.6931471805599453)
        return level0_head, head, consensus_average
    """)
    low, full, both = run(result.program, X)
    torch.testing.assert_close(both.exp(), (low.softmax(1) + full.softmax(1)) / 2)


def test_consensus_learned() -> None:
    rewritten = halves(captured_mlp())
    result = add_consensus(rewritten, Consensus("learned"))
    assert calls(result.program)[len(calls(rewritten.program)) - 1 :] == lines("""
        consensus_constant = detach(level0_head)
        consensus_constant_1 = detach(head)
        consensus_all = cat([consensus_constant, consensus_constant_1], 1)
        consensus_scores = linear(consensus_all, anytime_consensus_weight, anytime_consensus_bias)
        return level0_head, head, consensus_scores
    """)
    low, full, both = run(result.program, X)
    torch.testing.assert_close(both, (low + full) / 2)


class Centred(nn.Module):
    """Subtracts the mean of the batches before, and follows the mean."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("mean", torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        result: Tensor = self.head(hidden - self.mean)
        if self.training:
            self.mean.copy_(hidden.detach().mean(0))
        return result


CENTRED = """
    body = linear(x, body_weight, body_bias)
    detach = detach(body)
    mean_1 = mean.dim(detach, [0])
    update_buffer = anytimeify.update_buffer(mean, mean_1)
    after = anytimeify.after(body, [update_buffer])
    sub = sub.Tensor(after, mean)
    head = linear(sub, head_weight, head_bias)
    return head
"""


def test_as_before() -> None:
    torch.manual_seed(0)
    model = Centred()
    program = capture(model, X).program
    assert calls(program) == lines(CENTRED)
    told_apart = as_before(program)
    assert calls(told_apart) == lines("""
        buffer_before_default = anytimeify.buffer_before(mean)
        body = linear(x, body_weight, body_bias)
        detach = detach(body)
        mean_1 = mean.dim(detach, [0])
        update_buffer = anytimeify.update_buffer(mean, mean_1)
        after = anytimeify.after(body, [update_buffer])
        sub = sub.Tensor(after, buffer_before_default)
        head = linear(sub, head_weight, head_bias)
        return head
    """)
    torch.testing.assert_close(to_modules(told_apart).train()(X), (model(X),))
    torch.testing.assert_close(told_apart.tensors["mean"], model.mean)


def test_one_writer() -> None:
    torch.manual_seed(0)
    model = Centred()
    rewritten = applied(NestedChannels((0.5, 1.0)), capture(model, X))
    update = "level0_update_buffer = anytimeify.update_buffer(level0_mean_part0, level0_mean_1{})"
    half = """
        level0_body_weight_part0 = slice.Tensor(body_weight, 0, 0, 3)
        level0_body_bias_part0 = slice.Tensor(body_bias, 0, 0, 3)
        level0_body = linear(x, level0_body_weight_part0, level0_body_bias_part0)
        level0_detach = detach(level0_body)
        level0_mean_1 = mean.dim(level0_detach, [0])
        level0_mean_part0 = slice.Tensor(mean, 0, 0, 3)
        {}
        level0_after = anytimeify.after(level0_body, [level0_update_buffer])
        level0_sub = sub.Tensor(level0_after, level0_mean_part0)
        level0_head = linear(level0_sub, anytime_0_head_weight, anytime_0_head_bias)
        return level0_head, head
    """
    assert calls(rewritten.program) == lines(CENTRED)[:-1] + lines(half.format(update.format("")))
    single = one_writer(rewritten)
    assert calls(single.program) == lines(CENTRED)[:-1] + lines(half.format(update.format(", False")))
    network = to_modules(single.program).train()
    mean = single.program.tensors["mean"].clone()
    _, full = network(X)
    torch.testing.assert_close(full, model(X))
    torch.testing.assert_close(network.get_buffer("mean"), model.mean)
    assert not torch.equal(mean, model.mean)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(self.conv(x)).relu()
        return result


def test_fold_batch_norms() -> None:
    model, x = Normed(), torch.randn(2, 3, 5, 5)
    model(x)
    program = capture(model.eval(), x).program
    assert [line.partition("(")[0] for line in calls(program)] == [
        *("conv = conv2d", "bn = batch_norm", "relu = relu", "return relu")
    ]
    folded = fold_batch_norms(program)
    assert calls(folded) == lines("""
        conv = conv2d(x, conv_weight, conv_bias)
        relu = relu(conv)
        return relu
    """)
    bn = model.bn
    assert bn.running_var is not None
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    torch.testing.assert_close(folded.tensors["conv.weight"], model.conv.weight * factor[:, None, None, None])
    torch.testing.assert_close(run(folded, x), (model(x),))


def test_recount() -> None:
    program = applied(NestedWeights((0.5, 1.0)), captured_mlp()).program

    def kept(program: Program) -> dict[str, int]:
        return {node.name: mask_nonzeros_of(node) for node in program.graph.nodes if "masked" in node.name}

    text = lines(MLP)[:-1] + lines("""
        level0_body_weight_masked = mul.Tensor(body_weight, anytime_0_masks_body_weight)
        level0_body = linear(x, level0_body_weight_masked, body_bias)
        level0_relu = relu(level0_body)
        level0_head_weight_masked = mul.Tensor(head_weight, anytime_0_masks_head_weight)
        level0_head = linear(level0_relu, level0_head_weight_masked, head_bias)
        return level0_head, head
    """)
    assert calls(program) == text
    assert sum(kept(program).values()) == 24
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[:2, :3] = True
    tensors = {**program.tensors, "anytime.0.masks.body.weight": mask}
    again = recount(program, tensors)
    assert calls(again) == text
    assert kept(again) == {**kept(program), "level0_body_weight_masked": 6}
    assert kept(program)["level0_body_weight_masked"] != 6
    torch.testing.assert_close(run(again, X), run(program, X))
