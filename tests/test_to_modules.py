"""Operations become modules under the backbone's names, and follow train() and eval()."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.ir import Origin, Program, Size, TensorType
from anytimeify.operators.modules import Added, AttentionDropout, BatchNormCall, DropPath, Part, TrainingSwitch
from tests.capture.helpers import check
from tests.printing import calls, lines


def modules(network: nn.Module) -> dict[str, type[nn.Module]]:
    places = (nn.Module, Part, Added)
    return {name: type(module) for name, module in network.named_modules() if type(module) not in places and name}


IMAGE, LINE, CLIP, FLAT = (3, 8, 6, 6), (3, 8, 10), (3, 8, 4, 4, 4), (3, 8)

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(8, 4, 3, padding=1, groups=2), LINE),
    (nn.Conv2d(8, 4, (3, 1), stride=(2, 1), dilation=2, bias=False), IMAGE),
    (nn.Conv2d(8, 8, 3, padding="same", groups=8), IMAGE),
    (nn.Conv3d(8, 4, 3), CLIP),
    (nn.ConvTranspose1d(8, 4, 3), LINE),
    (nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False), IMAGE),
    (nn.ConvTranspose3d(8, 4, 2), CLIP),
    (nn.Linear(8, 5), FLAT),
    (nn.Linear(6, 5, bias=False), IMAGE),
    (nn.BatchNorm1d(8), FLAT),
    (nn.BatchNorm1d(8, momentum=0.3), LINE),
    (nn.BatchNorm2d(8, eps=1e-3), IMAGE),
    (nn.BatchNorm2d(8, affine=False), IMAGE),
    (nn.BatchNorm2d(8, track_running_stats=False), IMAGE),
    (nn.BatchNorm3d(8), CLIP),
    (nn.LayerNorm(6), IMAGE),
    (nn.LayerNorm((6, 6), eps=1e-6, bias=False), IMAGE),
    (nn.GroupNorm(4, 8), IMAGE),
    (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), IMAGE),
    (nn.InstanceNorm1d(8, affine=True), LINE),
    (nn.RMSNorm(6), IMAGE),
    (nn.PReLU(8), IMAGE),
    (nn.ReLU(inplace=True), FLAT),
    (nn.ReLU6(), FLAT),
    (nn.Hardtanh(-2, 2), FLAT),
    (nn.GELU("tanh"), FLAT),
    (nn.SiLU(), FLAT),
    (nn.Mish(), FLAT),
    (nn.ELU(0.5), FLAT),
    (nn.LeakyReLU(0.2), FLAT),
    (nn.Softplus(2.0), FLAT),
    (nn.Softmax(-1), FLAT),
    (nn.Hardswish(), FLAT),
    (nn.GLU(1), IMAGE),
    (nn.MaxPool2d(3, 2, 1), IMAGE),
    (nn.AvgPool2d(2, ceil_mode=True), IMAGE),
    (nn.AdaptiveAvgPool2d((2, 1)), IMAGE),
    (nn.Flatten(2), IMAGE),
    (nn.PixelShuffle(2), IMAGE),
    (nn.Dropout(0.3), FLAT),
    (nn.Dropout1d(0.3), LINE),
    (nn.Dropout2d(0.3), IMAGE),
    (nn.Dropout3d(0.3), CLIP),
    (nn.AlphaDropout(0.3), FLAT),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_layer_comes_back(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Identity(), copy.deepcopy(layer))
    captured = check(model, torch.randn(shape))
    network = to_modules(captured.program)
    found = network.get_submodule("1")
    assert type(found) is type(layer)
    layer = type(layer)(**{**_config(layer), "inplace": False}) if getattr(layer, "inplace", False) else layer
    spelled = repr(layer).replace(
        "kernel_size=3, stride=2, padding=1, dilation=1",
        "kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1)",
    )
    spelled = spelled.replace("kernel_size=2, stride=2, padding=0", "kernel_size=(2, 2), stride=(2, 2), padding=(0, 0)")
    assert repr(found) == spelled


def _config(layer: nn.Module) -> dict[str, float]:
    return {} if isinstance(layer, nn.ReLU) else {"p": layer.p}  # type: ignore[dict-item]


class Modes(nn.Module):
    """A layer, a norm, dropout as a module and as a function, and operations without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.fc(x)).exp()
        return F.dropout(self.drop(x), 0.25, self.training)


def test_printed() -> None:
    program = check(Modes(), torch.randn(4, 4)).program
    assert [line.partition("(")[0] for line in calls(program)] == [
        *("fc = linear", "norm = batch_norm", "exp = exp", "drop = dropout", "dropout = dropout", "return dropout")
    ]
    assert calls(to_modules(program)) == lines("""
        fc = fc(x)
        norm = norm(fc)
        exp = exp(norm)
        drop = drop(exp)
        dropout = anytime.calls.dropout(drop)
        return dropout
    """)
    assert calls(to_modules(program, training=False)) == lines("""
        fc = fc(x)
        norm = norm(fc)
        exp = exp(norm)
        return exp
    """)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6, padding_idx=1)
        self.places = nn.Embedding(5, 6)
        self.register_buffer("ids", torch.arange(5).view(1, 5), persistent=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.words(tokens) + self.places(self.ids)).mean(1)  # type: ignore[no-any-return]


def test_embeddings_transient_buffers_and_unread_parameters() -> None:
    captured = check(Embedded(), torch.randint(0, 20, (3, 5)))
    network = to_modules(captured.program)
    assert modules(network) == {"words": nn.Embedding, "places": nn.Embedding}
    words = network.get_submodule("words")
    assert isinstance(words, nn.Embedding)
    assert words.padding_idx == 1
    assert "ids" in dict(network.named_buffers())
    assert "ids" not in network.state_dict()
    assert [name for name, parameter in network.named_parameters() if not parameter.requires_grad] == [
        "unused.weight",
        "unused.bias",
    ]
    assert any("unused.weight" in note for note in captured.notes)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.act = nn.ReLU()
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.act(self.first(x)))
        return self.norm(self.act(self.second(x))) * self.scale  # type: ignore[no-any-return]


def test_tied_parameters_and_modules_called_twice() -> None:
    captured = check(Tied(), torch.randn(3, 4))
    network = to_modules(captured.program)
    assert network.get_parameter("first.weight") is network.get_parameter("second.weight")
    assert not network.get_parameter("scale").requires_grad
    assert modules(network) == {"first": nn.Linear, "second": nn.Linear, "act": nn.ReLU, "norm": nn.LayerNorm}
    calls = [node.target for node in network.graph.nodes if node.op == "call_module"]
    assert calls == ["first", "act", "norm", "second", "act", "norm"]


class Standardised(nn.Conv2d):
    """Weight standardisation: a batch norm over the weight, the same in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, 8, -1), None, None, training=True, momentum=0.0).reshape_as(
            self.weight
        )
        return F.conv2d(x, weight, self.bias)


def test_computed_weights_stay_functional() -> None:
    captured = check(nn.Sequential(Standardised(8, 8, 3), nn.Flatten()), torch.randn(IMAGE))
    assert modules(to_modules(captured.program)) == {"1": nn.Flatten}


class Functional(nn.Module):
    """Dropout and attention dropout that are no modules."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.4, self.training)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.2 if self.training else 0.0, scale=0.5)
        return F.rrelu(x, training=self.training)


def test_functional_dropout_follows_the_mode() -> None:
    captured = check(Functional(), torch.randn(3, 2, 5, 4))
    network = to_modules(captured.program)
    assert [type(module) for module in network.get_submodule("anytime.calls").children()] == [
        *(nn.Dropout, AttentionDropout, TrainingSwitch)
    ]
    assert not list(to_modules(captured.program, training=False).children())


class Twice(nn.Module):
    """One attention with dropout, called twice, with other dropouts elsewhere: a functional one, and an own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.other = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.attention, self.attention, self.other):
            x = self.drop(layer(x, x, x, need_weights=False)[0])
        return F.dropout(x, 0.4, self.training)


def test_what_is_no_module_of_the_backbone_is_below_anytime_once_for_all_copies() -> None:
    network = to_modules(check(Twice(), torch.randn(3, 5, 4)).program)
    calls = network.get_submodule("anytime.calls")
    assert {name: type(module) for name, module in calls.named_children()} == {
        "attention": AttentionDropout,
        "other": AttentionDropout,
        "dropout": nn.Dropout,
    }
    assert [name for name, _ in network.named_children()][-1] == "anytime"
    assert repr(network.get_submodule("anytime")) == "Added(\n  (calls): 2 AttentionDropout, 1 Dropout\n)"
    assert "in_proj_weight: [12, 4], in_proj_bias: [12]" in repr(network)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


def test_recurrent_layers_follow_the_mode() -> None:
    captured = check(Recurrent(), torch.randn(3, 6, 4))
    assert TrainingSwitch in modules(to_modules(captured.program)).values()


class Clashing(nn.Module):
    """Names that `nn.Module` or `fx.GraphModule` use for themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Linear(4, 4)
        self.code = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.inner = nn.ModuleDict({"forwards": nn.Linear(4, 4), "weight": nn.Linear(4, 4)})
        self.meta = nn.Parameter(torch.ones(4))
        self.training_ = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.code(self.graph(x)) * self.meta
        result: Tensor = self.inner["weight"](self.inner["forwards"](self.training_(x)))
        return result


def test_names_that_clash_with_attributes_of_modules() -> None:
    model = Clashing()
    captured = check(model, torch.randn(3, 4))
    network = to_modules(captured.program)
    changed = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    network.load_state_dict(changed)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in network.state_dict().items())
    assert set(copy.deepcopy(network).state_dict()) == set(changed)
    assert set(nn.ModuleDict({"net": network}).state_dict()) == {f"net.{name}" for name in changed}


def drop_path_program(mode: str) -> Program:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.anytimeify.drop_path.default, (x, 0.5, True, mode))
    graph.output((y,))
    for node in (x, y):
        node.meta.update(type=TensorType((Size(1, ("s0",)), Size(4)), torch.float32), origin=Origin())
    return Program(graph, {})


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_drop_path(mode: str) -> None:
    network = to_modules(drop_path_program(mode))
    (layer,) = network.get_submodule("anytime.calls").children()
    assert isinstance(layer, DropPath)
    x = torch.ones(64, 4)
    torch.testing.assert_close(network.eval()(x)[0], x)
    y = network.train()(x)[0]
    kept = y[:, 0].bool()
    torch.testing.assert_close(y, 2 * x * kept[:, None])
    assert kept.any() != kept.all() if mode == "row" else kept.any() == kept.all()
    assert not list(to_modules(drop_path_program(mode), training=False).children())
    with pytest.raises(ValueError, match="mode"):
        torch.ops.anytimeify.drop_path(x, 0.5, True, "column")


@pytest.mark.parametrize("selection", ["whole", "slice", "index"])
def test_batch_norm_with_views_writes_its_statistics_back(selection: str) -> None:
    """The program of a narrowed batch norm: its tensors are views of the full ones."""
    reference = nn.BatchNorm2d(6)
    kept = {"whole": torch.arange(6), "slice": torch.arange(4), "index": torch.tensor([0, 2, 5])}[selection]
    tensors: dict[str, Tensor] = {
        "norm.running_mean": torch.randn(6), "norm.running_var": torch.rand(6) + 0.5,
        "other.weight": nn.Parameter(torch.randn(len(kept))), "other.bias": nn.Parameter(torch.randn(len(kept))),
        "anytime.constants.index": kept,
    }  # fmt: skip
    graph = fx.Graph()
    x = graph.placeholder("x")
    readers = {name: graph.get_attr(name) for name in tensors}
    views = []
    for name in ("norm.running_mean", "norm.running_var"):
        view = readers[name]
        if selection == "slice":
            view = graph.call_function(torch.ops.aten.slice.Tensor, (view, 0, 0, 4))
        elif selection == "index":
            view = graph.call_function(
                torch.ops.aten.index_select.default, (view, 0, readers["anytime.constants.index"])
            )
        views.append(view)
    norm = graph.call_function(
        torch.ops.aten.batch_norm.default,
        (x, readers["other.weight"], readers["other.bias"], *views, True, 0.1, 1e-5, False),
    )
    graph.output((norm,))
    for node in graph.nodes:
        node.meta.update(
            type=TensorType((Size(1, ("s0",)), Size(len(kept)), Size(5), Size(5)), torch.float32), origin=Origin()
        )
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    network = to_modules(Program(graph, tensors, frozenset({"anytime.constants.index"})))
    assert BatchNormCall in modules(network).values()

    reference = nn.BatchNorm2d(len(kept))
    reference.load_state_dict({
        "weight": before["other.weight"], "bias": before["other.bias"], "num_batches_tracked": torch.tensor(0),
        "running_mean": before["norm.running_mean"][kept], "running_var": before["norm.running_var"][kept],
    })  # fmt: skip
    image = torch.randn(4, len(kept), 5, 5)
    for mode in (True, False):
        network.train(mode)
        reference.train(mode)
        torch.testing.assert_close(network(image)[0], reference(image))
    others = [index for index in range(6) if index not in kept.tolist()]
    for name in ("running_mean", "running_var"):
        ours = network.state_dict()[f"norm.{name}"]
        torch.testing.assert_close(ours[kept], getattr(reference, name))
        assert torch.equal(ours[others], before[f"norm.{name}"][others])


def test_inference_form_has_batch_norm_in_eval_form() -> None:
    captured = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 3, 4, 4))
    network = to_modules(captured.program, training=False)
    assert not network.training
    assert isinstance(network.get_submodule("1"), nn.BatchNorm2d)
    assert to_modules(captured.program).training
