"""`capture` on small backbones: inputs, outputs, batch, names, metadata, notes, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.errors import CaptureError, UnsupportedOpError
from anytimeify.ir import Captured, Origin, Size, TensorType
from anytimeify.operators.modes import BY_MODE
from tests.capture.helpers import check, text


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out += x
        return self.relu(out)  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer1(self.stem(x)))  # type: ignore[no-any-return]


def recorded_flag() -> bool:
    """Whether this build of torch records that a batch norm may use cuDNN."""
    program = torch.export.export(nn.BatchNorm2d(3), (torch.randn(2, 3, 4, 4),))
    (norm,) = (node for node in program.graph.nodes if node.target is torch.ops.aten.batch_norm.default)
    return bool(norm.args[-1])


CUDNN = recorded_flag()
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_canonical_graph() -> None:
    captured = check(Net(), IMAGES)
    assert text(captured.program) == "\n".join([
        "stem = conv2d(x, stem_weight, stem_bias)",
        "layer1_0_conv1 = conv2d(stem, layer1_0_conv1_weight, None, [1, 1], [1, 1])",
        "layer1_0_bn1 = batch_norm(layer1_0_conv1, layer1_0_bn1_weight, layer1_0_bn1_bias, layer1_0_bn1_running_mean, "
        f"layer1_0_bn1_running_var, True, 0.1, 1e-05, {CUDNN})",
        "layer1_0_relu = relu(layer1_0_bn1)",
        "layer1_0_conv2 = conv2d(layer1_0_relu, layer1_0_conv2_weight, layer1_0_conv2_bias, [1, 1], [1, 1], [1, 1], 2)",
        "layer1_0_add = add(layer1_0_conv2, stem)",
        "layer1_0_relu_1 = relu(layer1_0_add)",
        "layer1_1_conv1 = conv2d(layer1_0_relu_1, layer1_1_conv1_weight, None, [1, 1], [1, 1])",
        "layer1_1_bn1 = batch_norm(layer1_1_conv1, layer1_1_bn1_weight, layer1_1_bn1_bias, layer1_1_bn1_running_mean, "
        f"layer1_1_bn1_running_var, True, 0.1, 1e-05, {CUDNN})",
        "layer1_1_relu = relu(layer1_1_bn1)",
        "layer1_1_conv2 = conv2d(layer1_1_relu, layer1_1_conv2_weight, layer1_1_conv2_bias, [1, 1], [1, 1], [1, 1], 2)",
        "layer1_1_add = add(layer1_1_conv2, layer1_0_relu_1)",
        "layer1_1_relu_1 = relu(layer1_1_add)",
        "head_0 = adaptive_avg_pool2d(layer1_1_relu_1, [1, 1])",
        "head_1 = flatten(head_0, 1)",
        "head_2 = dropout(head_1, 0.2, True)",
        "head_3 = linear(head_2, head_3_weight, head_3_bias)",
        "return head_3",
    ])  # fmt: skip
    assert captured.notes == ()


def test_metadata() -> None:
    captured = capture(Net(), IMAGES)
    nodes = {node.name: node for node in captured.program.graph.nodes}
    batch = Size(1, (captured.batch or "",))
    assert nodes["layer1_0_add"].meta["type"] == TensorType((batch, Size(8), Size(6), Size(6)), torch.float32)
    assert nodes["x"].meta["type"].shape[0] == batch
    assert nodes["stem_weight"].meta["type"] == TensorType(tuple(map(Size, (8, 3, 3, 3))), torch.float32)
    assert nodes["stem_weight"].meta["origin"] == Origin("stem")
    conv = nodes["layer1_0_conv1"].meta["origin"]
    assert (conv.module_path, conv.module_class) == ("layer1.0.conv1", "torch.nn.modules.conv.Conv2d")
    assert conv.source.startswith("test_capture.py:")
    assert conv.source.endswith("out = self.relu(self.bn1(self.conv1(x)))")
    assert nodes["layer1_0_add"].meta["origin"].module_path == "layer1.0"


def test_captures_repeat_exactly() -> None:
    first, second = capture(Net(), IMAGES), capture(Net(), IMAGES)
    assert text(first.program) == text(second.program)
    assert first.batch == second.batch


def test_tensors_keep_names_order_and_kind() -> None:
    model = Net()
    model.get_parameter("stem.bias").requires_grad_(False)
    program = capture(model, IMAGES).program
    assert list(program.tensors) == list(model.state_dict())
    assert {name for name in program.tensors if program.is_parameter(name)} == {
        name for name, _ in model.named_parameters()
    }
    assert not program.tensors["stem.bias"].requires_grad
    assert program.tensors["stem.weight"].requires_grad


class Flags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, flip: bool, *, scale: Tensor, shift: float = 0.0) -> Tensor:
        return self.linear(-x if flip else x) * scale + shift  # type: ignore[no-any-return]


class Keywords(Flags):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.linear(x * mask)  # type: ignore[no-any-return]


def test_inputs_that_are_no_tensors_become_constants() -> None:
    from anytimeify.capture.inputs import CallInputs

    captured = check(Flags(), CallInputs((torch.randn(3, 4), True), {"scale": torch.randn(3, 3), "shift": 2.0}))
    assert captured.signature.constants == ((1, True), (3, 2.0))
    assert [tuple(tensor.shape) for tensor in captured.example_inputs] == [(3, 4), (3, 3)]


def test_keyword_inputs_share_the_batch() -> None:
    mask, x = torch.ones(3, 1), torch.randn(3, 4)
    captured = check(Keywords(), {"mask": mask, "x": x})
    names = [node.name for node in captured.program.placeholders]
    assert sorted(names) == ["mask", "x"]
    assert {node.meta["type"].shape[0] for node in captured.program.placeholders} == {Size(1, (str(captured.batch),))}
    assert [tensor is mask or tensor is x for tensor in captured.example_inputs] == [True, True]


def test_a_batch_of_one_is_dynamic_all_the_same() -> None:
    captured = check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), torch.randn(1, 3, 8, 8))
    assert captured.batch is not None
    assert captured.example_inputs[0].shape[0] == 1


class Outputs(NamedTuple):
    hidden: Tensor
    logits: Tensor


class Heads(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.body, self.head, self.make = nn.Linear(4, 5), nn.Linear(5, 3), make

    def forward(self, x: Tensor) -> object:
        hidden = self.body(x)
        return self.make(hidden, self.head(hidden))


@pytest.mark.parametrize(
    ("make", "output", "width"),
    [
        (Outputs, None, 3),
        (lambda hidden, logits: {"hidden": hidden, "logits": logits}, None, 3),
        (lambda hidden, logits: (hidden, logits), None, 5),
        (lambda hidden, logits: (hidden, logits), 1, 3),
        (lambda hidden, logits: (hidden, logits), -1, 3),
        (lambda hidden, logits: (None, 3, logits), None, 3),
        (lambda hidden, logits: {"a": [hidden, {"b": logits}]}, "a.1.b", 3),
        (Outputs, "hidden", 5),
    ],
)
def test_prediction(make: Callable[[Tensor, Tensor], object], output: int | str | None, width: int) -> None:
    captured = capture(Heads(make), torch.randn(2, 4), output=output)
    (result,) = captured.program.outputs
    assert result.meta["type"].shape[1] == Size(width)


def test_dropped_outputs_are_noted() -> None:
    captured = capture(Heads(lambda hidden, logits: (hidden, logits)), torch.randn(2, 4))
    assert any("2 outputs" in note for note in captured.notes)
    assert any("head.weight" in note for note in captured.notes)


@pytest.mark.parametrize(
    ("make", "output", "message"),
    [
        (lambda hidden, logits: {"a": hidden}, "b", r"output='b'.*'a'.*no 'b'"),
        (lambda hidden, logits: (hidden, logits), 2, r"tuple of 2.*no '2'"),
        (lambda hidden, logits: 3, None, "no tensor"),
    ],
)
def test_no_such_prediction(make: Callable[[Tensor, Tensor], object], output: int | str | None, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Heads(make), torch.randn(2, 4), output=output)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = self.a(x)
        with torch.autocast("cpu", enabled=False):
            y = self.b(x).float()
        return y * teacher + self.b(x).detach()  # type: ignore[no-any-return]


def test_no_grad_and_disabled_autocast_are_inlined() -> None:
    captured = check(Wrapped(), torch.randn(3, 4))
    assert text(captured.program).count("detach(") == 2
    assert any("autocast" in note for note in captured.notes)


class Autocast(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.a(x)  # type: ignore[no-any-return]


def test_enabled_autocast_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="autocast"):
        capture(Autocast(), torch.randn(3, 4))


class Noise(nn.Module):
    """Bookkeeping that computes nothing, a constant made on a device, and a size that is computed."""

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(4, device=x.device).float().unsqueeze(0)
        y = x[:, :].contiguous().view(x.size(0), 4).to(torch.float32).clone() + positions
        mask = torch.zeros(x.shape[0], 1, device=x.device)
        y = F.dropout(F.pad(y, (0, 0)), 0.0, self.training) + mask + torch.arange(x.shape[0], device=x.device)[:, None]
        return (y * torch.tensor([1.0, 2.0, 3.0, 4.0])).expand(-1, 4)


def test_noise_is_gone_and_nothing_holds_a_device() -> None:
    captured = check(Noise(), torch.randn(3, 4))
    assert text(captured.program) == "\n".join([
        "sym_size = sym_size(x, 0)",
        "add = add(x, anytime_constants_unsqueeze)",
        "new_full = new_full(x, [sym_size, 1], 0, dtype=torch.float32)",
        "add_1 = add(add, new_full)",
        "new_ones = new_ones(x, [sym_size], dtype=torch.int64)",
        "cumsum = cumsum(new_ones, 0, dtype=torch.int64)",
        "sub = sub(cumsum, 1)",
        "unsqueeze = unsqueeze(sub, 1)",
        "add_2 = add(add_1, unsqueeze)",
        "mul = mul(add_2, anytime_constants_lifted_tensor_0)",
        "return mul",
    ])  # fmt: skip
    assert captured.program.transient == {
        name for name in captured.program.tensors if name.startswith("anytime.constants.")
    }


class Recurrent(nn.Module):
    """An LSTM whose states begin with zeros in the type of what it reads, behind something of its own type or not."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed, self.rnn = embed, nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rnn(self.embed(x))[0]
        return result


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_recurrent_layer_may_be_cast(tokens: bool, dtype: torch.dtype) -> None:
    x = torch.randint(9, (2, 3)) if tokens else torch.randn(2, 3, 4)
    model = Recurrent(nn.Embedding(9, 4) if tokens else nn.Linear(4, 4))
    network = to_modules(capture(model, x).program).to(dtype)
    x = x if tokens else x.to(dtype)
    torch.testing.assert_close(network(x)[0], model.to(dtype)(x))


class DropsSamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.training:
            y = y * y.new_empty((x.shape[0], 1)).bernoulli_(0.75).div_(0.75)
        return x + y  # type: ignore[no-any-return]


class DropsTokens(DropsSamples):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (torch.rand_like(x) > 0.5)
        return self.linear(x)  # type: ignore[no-any-return]


def test_stochastic_depth_is_recognised() -> None:
    captured = check(DropsSamples(), torch.randn(8, 4))
    assert "drop_path(linear, 0.75, True, row)" in text(captured.program)
    assert captured.notes == ()


def test_what_both_modes_compute_is_kept() -> None:
    captured = check(DropsTokens(), torch.randn(8, 4), training=False)
    assert captured.notes == ("train mode and eval mode compute different things: both are kept",)
    assert captured.lost == ()
    assert text(captured.program).splitlines()[-3:] == [
        "mul_by_mode = by_mode(mul, x)",
        "linear = linear(mul_by_mode, linear_weight, linear_bias)",
        "return linear",
    ]


class Sorts(DropsSamples):
    def forward(self, x: Tensor) -> Tensor:
        values, places = self.linear(x).sort(1, descending=self.training)
        low, high = values.chunk(2, 1) if self.training else (2 * values).chunk(2, 1)
        return torch.cat([high * places[:, :2], low], 1)


def test_of_operations_with_several_results_one_result_is_chosen() -> None:
    program = check(Sorts(), torch.randn(8, 4)).program
    chosen = [node for node in program.graph.nodes if node.target is BY_MODE]
    assert chosen
    assert not any(isinstance(node.meta["type"], tuple) for node in chosen)


def test_cumulative_averages_are_said_by_a_number_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.Dropout(0.5))
    captured = capture(model, IMAGES)
    assert captured.notes == ()
    assert "True, -1.0, 1e-05" in text(captured.program)
    assert "dropout" in text(captured.program)
    assert [one.momentum for one in model if isinstance(one, nn.BatchNorm2d)] == [None]


def test_lazy_models_are_not_initialised_behind_ones_back() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(CaptureError, match=r"'0.weight' is not initialised"):
        capture(model, torch.randn(2, 3))
    assert isinstance(model[0].weight, nn.UninitializedParameter)


def test_predictions_that_are_no_numbers_agree() -> None:
    assert capture(nn.Linear(3, 4), torch.full((2, 3), float("nan"))).notes == ()


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Unrolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[i] for i in range(x.shape[0])])


def test_data_dependent_control_flow() -> None:
    with pytest.raises(CaptureError, match=r"Branches has control flow.*test_capture\.py:\d+.*torch\.where") as error:
        capture(Branches(), torch.randn(2, 4))
    assert error.value.__cause__ is not None


def test_wrong_shape_gives_the_models_own_message() -> None:
    with pytest.raises(
        CaptureError, match=r"does not run on the example inputs \(shapes \(2, 5, 8, 8\)\).*expected input.*3 channels"
    ):
        capture(Net(), torch.randn(2, 5, 8, 8))


def test_what_does_not_survive_is_refused() -> None:
    class Changing(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Changing.calls += 1
            return x * Changing.calls

    with pytest.raises(CaptureError, match=r"Changing does not survive capture: .* differs from the model by"):
        capture(Changing(), torch.randn(2, 3))


def test_other_things_are_no_backbones() -> None:
    with pytest.raises(CaptureError, match="not a function"):
        capture(lambda x: x, torch.randn(2, 3))  # type: ignore[arg-type]


def test_inputs_are_needed() -> None:
    with pytest.raises(CaptureError, match=r"Nothing tells the input of .*Net.*example_inputs"):
        capture(Net())
    with pytest.raises(CaptureError, match="example_inputs is a int"):
        capture(Net(), 3)


def test_the_callers_random_state_is_left_alone() -> None:
    model = DropsSamples()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    capture(model, torch.zeros(8, 4))
    assert torch.equal(torch.rand(1), expected)


def test_inside_no_grad_and_with_frozen_flags() -> None:
    model = Net()
    model.get_submodule("layer1.0.bn1").eval()
    with torch.no_grad():
        captured = capture(model, IMAGES)
    assert not model.get_submodule("layer1.0.bn1").training
    assert model.get_submodule("layer1.1.bn1").training
    assert "detach" not in text(captured.program)


def test_no_optional_package_is_needed() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['timm', 'torchvision', 'transformers', 'onnx']));"
        "import torch; from anytimeify.capture import capture;"
        "assert capture(torch.nn.Linear(3, 2), torch.ones(2, 3)).batch"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def captured_sizes(captured: Captured) -> list[str]:
    return [str(node.meta["type"]) for node in captured.program.graph.nodes if isinstance(node.meta.get("type"), Size)]


class Windows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        y = x.view(batch, 2, 2, 3).permute(0, 2, 1, 3).reshape(batch * 2, 6)
        y = y.view(batch * 2, 3, 2)[: batch + 1]
        return y.mean(1)


def test_sizes_are_monomials_or_opaque() -> None:
    captured = capture(Windows(), torch.randn(3, 12))
    shapes = {
        node.name: [str(size) for size in node.meta["type"].shape]
        for node in captured.program.graph.nodes
        if isinstance(node.meta.get("type"), TensorType)
    }
    s = captured.batch
    assert shapes["reshape_1"] == [f"2*{s}", "6"]
    (result,) = captured.program.outputs
    opaque = result.meta["type"].shape[0]
    assert opaque.symbols == (f"({s}+1)",)
    assert Size.parse(str(opaque)) == opaque
    assert f"2*{s}" in captured_sizes(captured)
