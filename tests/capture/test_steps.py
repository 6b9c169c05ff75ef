"""Every step of capture: the work graph before and after it, as text, and the same numbers from both."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from anytimeify.capture import capture
from anytimeify.capture.constants import free_of_device
from anytimeify.capture.finish import finish
from anytimeify.capture.functionalise import drop_dead_writes, functionalise
from anytimeify.capture.generalise import generalise
from anytimeify.capture.lower import lower
from anytimeify.capture.recompose import recompose
from anytimeify.capture.side_by_side import side_by_side
from anytimeify.capture.simplify import drop_identities, freeze_unread, simplify
from anytimeify.capture.stochastic_depth import recognise_stochastic_depth
from anytimeify.capture.training_form import restore_training_form
from anytimeify.capture.two_modes import merge
from anytimeify.capture.work_graph import WorkGraph
from anytimeify.codegen.to_modules import to_modules
from anytimeify.ir import Program
from tests.building import BATCH, Build, run
from tests.printing import calls, lines

aten = torch.ops.aten
X = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(0))


def draft_of(build: Build, *outputs: fx.Node) -> WorkGraph:
    """A hand-written graph as the exporter records it: with a value on every node."""
    program = build.done(*outputs)
    for node, value in build.values.items():
        node.meta = {"val": value}
    return WorkGraph(program.graph, dict(program.tensors), set(program.transient))


def numbers(work: WorkGraph, x: Tensor = X) -> tuple[Tensor, ...]:
    """What a work graph computes in eval mode, from copies of its graph and of its tensors, which it may write to."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(work.graph, {}))
    return run(Program(graph, {name: tensor.clone() for name, tensor in work.tensors.items()}), x)


def becomes(work: WorkGraph, before: str, after: str, step: Callable[[WorkGraph], object], x: Tensor = X) -> None:
    """A step rewrites one text to the other, and the numbers stay."""
    assert calls(work) == lines(before)
    expected = numbers(work, x)
    step(work)
    assert calls(work) == lines(after)
    torch.testing.assert_close(numbers(work, x), expected)


class Scaled(nn.Module):
    """Two layers of one weight; what the first makes is a scale without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.a(x).exp()
        result: Tensor = self.b(x / scale)
        return result


def test_lower() -> None:
    model = Scaled().eval()
    exported = torch.export.export(model, (X,), strict=False)
    (inner,) = [node for node in exported.graph.nodes if "wrap_with_set_grad_enabled" in str(node.target)]
    assert inner.args[0] is False
    work = lower(exported, list(model.state_dict()))
    assert [line.partition(" = call")[0].strip() for line in str(work.graph).splitlines()[1:5]] == [
        "%x : [num_users=2] = placeholder[target=x]",
        "%a_weight : [num_users=2] = get_attr[target=a.weight]",
        "%a_bias : [num_users=1] = get_attr[target=a.bias]",
        "%b_bias : [num_users=1] = get_attr[target=b.bias]",
    ]
    assert calls(work) == lines("""
        linear = linear(x, a_weight, a_bias)
        exp = exp(linear)
        detach_default = detach(exp)
        div = div.Tensor(x, detach_default)
        linear_1 = linear(div, a_weight, b_bias)
        return linear_1
    """)
    torch.testing.assert_close(numbers(work), (model(X),))
    assert work.tensors["b.weight"] is work.tensors["a.weight"]


def test_recompose() -> None:
    tensors = {name: torch.rand(4) + 0.5 for name in ("mean", "var", "gain", "shift")}
    b = Build({"kernel": torch.randn(4, 3, 1, 1), **tensors}, x=torch.randn(BATCH, 3, 2, 2))
    conv = b(aten.convolution.default, b.x, b.read("kernel"), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    norm = b(
        *(aten._native_batch_norm_legit_no_training.default, conv, b.read("gain"), b.read("shift")),
        *(b.read("mean"), b.read("var"), 0.1, 1e-5),
        name="norm",
    )
    work = draft_of(b, b(operator.getitem, norm, 0, name="first"))
    becomes(
        work,
        """
        convolution = convolution(x, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        norm = _native_batch_norm_legit_no_training(convolution, gain, shift, mean, var, 0.1, 1e-05)
        first = getitem(norm, 0)
        return first
        """,
        """
        conv2d_default = conv2d(x, kernel, None, [1, 1], [0, 0], [1, 1], 1)
        batch_norm_default = batch_norm(conv2d_default, gain, shift, mean, var, False, 0.1, 1e-05, False)
        return batch_norm_default
        """,
        recompose,
        torch.randn(BATCH, 3, 2, 2),
    )


def test_drop_identities() -> None:
    b = Build({}, x=X)
    idle = b(aten.dropout.default, b.x, 0.0, True)
    whole = b(aten.slice.Tensor, idle, 1, 0, 2**63 - 1)
    becomes(
        draft_of(b, b(aten.mul.Tensor, whole, 2)),
        """
        dropout = dropout(x, 0.0, True)
        slice_1 = slice.Tensor(dropout, 1, 0, 9223372036854775807)
        mul = mul.Tensor(slice_1, 2)
        return mul
        """,
        """
        mul = mul.Tensor(x, 2)
        return mul
        """,
        drop_identities,
    )


def counting() -> WorkGraph:
    b = Build({"seen": torch.zeros(4)}, x=X)
    b(aten.add_.Tensor, b.read("seen"), b(aten.mean.dim, b.x, [0]))
    return draft_of(b, b(aten.mul.Tensor, b.x, 2))


COUNTING = """
    mean = mean.dim(x, [0])
    add_ = add_.Tensor(seen, mean)
    mul = mul.Tensor(x, 2)
    return mul
"""


def test_drop_dead_writes() -> None:
    becomes(counting(), COUNTING, "mul = mul.Tensor(x, 2)\nreturn mul", drop_dead_writes)
    becomes(counting(), COUNTING, COUNTING, lambda work: drop_dead_writes(work, updates=True))


def test_functionalise() -> None:
    b = Build({}, x=X)
    y = b(aten.add.Tensor, b.x, 1)
    b(aten.mul_.Tensor, b(aten.slice.Tensor, y, 1, 1, 3), 3)
    becomes(
        draft_of(b, b(aten.exp.default, y)),
        """
        add = add.Tensor(x, 1)
        slice_1 = slice.Tensor(add, 1, 1, 3)
        mul_ = mul_.Tensor(slice_1, 3)
        exp = exp(add)
        return exp
        """,
        """
        add = add.Tensor(x, 1)
        slice_1 = slice.Tensor(add, 1, 1, 3)
        mul_tensor = mul.Tensor(slice_1, 3)
        slice_scatter_default = slice_scatter(add, mul_tensor, 1, 1, 3)
        exp = exp(slice_scatter_default)
        return exp
        """,
        functionalise,
    )


def test_functionalise_with_updates() -> None:
    becomes(
        counting(),
        COUNTING,
        """
        mean = mean.dim(x, [0])
        add_tensor = add.Tensor(seen, mean)
        update_buffer_default = anytimeify.update_buffer(seen, add_tensor)
        after_default = anytimeify.after(x, [update_buffer_default])
        mul = mul.Tensor(after_default, 2)
        return mul
        """,
        lambda work: functionalise(work, updates=True),
    )


def test_restore_training_form() -> None:
    b = Build({"mean": torch.randn(4), "var": torch.rand(4) + 0.5}, x=X)
    norm = b(aten.batch_norm.default, b.x, None, None, b.read("mean"), b.read("var"), False, 0.1, 1e-5, False)
    becomes(
        draft_of(b, norm),
        """
        batch_norm = batch_norm(x, None, None, mean, var, False, 0.1, 1e-05, False)
        return batch_norm
        """,
        """
        batch_norm = batch_norm(x, None, None, mean, var, True, 0.1, 1e-05, False)
        return batch_norm
        """,
        lambda work: restore_training_form(work, held=frozenset()),
    )


def test_a_dropout_that_is_on_in_eval_mode_is_a_product_with_random_numbers() -> None:
    b = Build({}, x=X)
    work = draft_of(b, b(aten.dropout.default, b.x, 0.75, True))
    restore_training_form(work, held=frozenset())
    assert calls(work) == lines("""
        bernoulli_p = bernoulli.p(x, 0.25)
        div_tensor = div.Tensor(bernoulli_p, 0.25)
        mul_tensor = mul.Tensor(x, div_tensor)
        return mul_tensor
    """)
    ratio = numbers(work)[0] / X
    assert set(ratio.round(decimals=4).unique().tolist()) == {0.0, 4.0}


def test_simplify() -> None:
    b = Build({}, x=X)
    copy = b(aten.clone.default, b(aten.alias.default, b.x))
    rows = b(aten.view.default, copy, [BATCH, 2, 2])
    same = b(aten.to.dtype, rows, torch.float32)
    wide = b(aten._to_copy.default, same, dtype=torch.float64, name="wide")
    b(aten.rand.default, [3])
    becomes(
        draft_of(b, b(aten.exp.default, wide)),
        """
        alias = alias(x)
        clone = clone(alias)
        view = view(clone, [7, 2, 2])
        to = to.dtype(view, torch.float32)
        wide = _to_copy(to, dtype=torch.float64)
        rand = rand([3])
        exp = exp(wide)
        return exp
        """,
        """
        view = reshape(x, [7, 2, 2])
        wide = to.dtype(view, torch.float64)
        exp = exp(wide)
        return exp
        """,
        simplify,
    )


@pytest.mark.parametrize("scaled", [True, False])
def test_recognise_stochastic_depth(scaled: bool) -> None:
    b = Build({}, x=X)
    factor = b(aten.bernoulli.p, b(aten.new_empty.default, b.x, [BATCH, 1], name="empty"), 0.5, name="noise")
    if scaled:
        factor = b(aten.div.Tensor, factor, 0.5, name="scaled")
    work = draft_of(b, b(aten.mul.Tensor, b.x, factor))
    assert calls(work) == [
        "empty = new_empty(x, [7, 1])",
        "noise = bernoulli.p(empty, 0.5)",
        *(["scaled = div.Tensor(noise, 0.5)"] if scaled else []),
        f"mul = mul.Tensor(x, {'scaled' if scaled else 'noise'})",
        "return mul",
    ]
    recognise_stochastic_depth(work)
    assert calls(work) == lines(f"""
        drop_path_default = anytimeify.drop_path(x, 0.5, {scaled}, row)
        return drop_path_default
    """)
    rows = (numbers(work)[0] / X).round(decimals=4)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))  # one number a sample
    assert set(rows.unique().tolist()) == {0.0, 2.0 if scaled else 1.0}


def test_free_of_device() -> None:
    b = Build({}, x=X)
    size = b(aten.sym_size.int, b.x, 0, name="size")
    places = b(aten.mul.Tensor, b(aten.arange.default, 4, device="cpu"), 0.5, name="places")
    column = b(aten.zeros.default, [size, 1], device="cpu", name="column")
    becomes(
        draft_of(b, b(aten.add.Tensor, b(aten.add.Tensor, b.x, places), column)),
        """
        size = sym_size.int(x, 0)
        arange = arange(4, device=cpu)
        places = mul.Tensor(arange, 0.5)
        column = zeros([size, 1], device=cpu)
        add = add.Tensor(x, places)
        add_1 = add.Tensor(add, column)
        return add_1
        """,
        """
        size = sym_size.int(x, 0)
        new_full_default = new_full(x, [size, 1], 0, dtype=torch.float32)
        add = add.Tensor(x, anytime_constants_places)
        add_1 = add.Tensor(add, new_full_default)
        return add_1
        """,
        free_of_device,
    )


def test_freeze_unread() -> None:
    weight = torch.randn(3, 4)
    b = Build({name: nn.Parameter(weight.clone()) for name in ("read.weight", "unread.weight")}, x=X)
    result = b(aten.linear.default, b.x, b.read("read.weight"))
    b.graph.erase_node(b.reads["unread.weight"])
    b.graph.output((result,))
    work = WorkGraph(b.graph, b.tensors, set())
    text = "linear = linear(x, read_weight)\nreturn linear"
    becomes(work, text, text, freeze_unread)
    assert [tensor.requires_grad for tensor in work.tensors.values()] == [True, False]
    assert work.notes == ["parameters that the prediction does not read were kept and frozen: unread.weight"]


def squares(batch: int) -> WorkGraph:
    """Exported for one batch: its size is a number."""
    b = Build({}, x=torch.randn(batch, 4))
    return draft_of(b, b(aten.exp.default, b(aten.reshape.default, b.x, [2 * batch, 2])))


def test_generalise() -> None:
    work, other = squares(2), squares(3)
    assert calls(work) == ["reshape = reshape(x, [4, 2])", "exp = exp(reshape)", "return exp"]
    assert calls(other) == ["reshape = reshape(x, [6, 2])", "exp = exp(reshape)", "return exp"]
    generalise(work, other, 2, 3)
    assert calls(work) == lines("""
        sym_size_int = sym_size.int(x, 0)
        mul = mul(sym_size_int, 2)
        reshape = reshape(x, [mul, 2])
        exp = exp(reshape)
        return exp
    """)
    for batch in (1, 2, 3, 5):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(numbers(work, x), (x.reshape(-1, 2).exp(),))


class Blocks(nn.Module):
    """Two layers below a module, which adds what they make to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x) + x
        return result


def test_finish() -> None:
    model = Blocks()
    work = lower(torch.export.export(model, (X,), strict=False))
    assert calls(work) == lines("""
        linear = linear(x, body_0_weight, body_0_bias)
        relu = relu(linear)
        add = add.Tensor(relu, x)
        return add
    """)
    program = finish(work, {})
    assert str(program).splitlines() == lines("""
        x = input  # [7, 4]
        body_0_weight = body.0.weight  # [4, 4]
        body_0_bias = body.0.bias  # [4]
        body_0 = linear(x, body_0_weight, body_0_bias)  # [7, 4]
        body_1 = relu(body_0)  # [7, 4]
        add = add.Tensor(body_1, x)  # [7, 4]
        return add
    """)
    torch.testing.assert_close(run(program, X), (model(X),))


def layer(name: str, function: Callable[..., Tensor]) -> Program:
    """A linear layer, and a function of what it makes."""
    b = Build({"fc.weight": nn.Parameter(torch.ones(3, 4))}, x=X)
    return b.done(b(function, b(aten.linear.default, b.x, b.read("fc.weight"), name="fc"), name=name))


def test_merge_both_modes() -> None:
    training = layer("act", aten.relu.default)
    evaluation = layer("act_1", aten.tanh.default)
    evaluation = Program(evaluation.graph, training.tensors)  # those of one model
    assert calls(training) == ["fc = linear(x, fc_weight)", "act = relu(fc)", "return act"]
    assert calls(evaluation) == ["fc = linear(x, fc_weight)", "act_1 = tanh(fc)", "return act_1"]
    merged = merge(training, evaluation)
    assert calls(merged) == lines("""
        fc = linear(x, fc_weight)
        act_1 = tanh(fc)
        act = relu(fc)
        act_by_mode = anytimeify.by_mode(act, act_1)
        return act_by_mode
    """)
    network = to_modules(merged)
    torch.testing.assert_close(network.train()(X), run(training, X))
    torch.testing.assert_close(network.eval()(X), run(evaluation, X))


def test_side_by_side() -> None:
    models = Blocks().eval(), Scaled().eval()
    one, other = (capture(model, X) for model in models)
    assert calls(one.program) == lines("""
        body_0 = linear(x, body_0_weight, body_0_bias)
        body_1 = relu(body_0)
        add = add.Tensor(body_1, x)
        return add
    """)
    both = side_by_side(one, other).program
    assert calls(both) == lines("""
        first_body_0 = linear(x, first_body_0_weight, first_body_0_bias)
        first_body_1 = relu(first_body_0)
        first_add = add.Tensor(first_body_1, x)
        second_a = linear(x, second_a_weight, second_a_bias)
        second_exp = exp(second_a)
        second_detach = detach(second_exp)
        second_div = div.Tensor(x, second_detach)
        second_b = linear(second_div, second_a_weight, second_b_bias)
        return first_add, second_b
    """)
    torch.testing.assert_close(run(both, X), tuple(model(X) for model in models))
