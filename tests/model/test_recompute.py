"""`transform(..., checkpoint=True)`: what the backbone recomputes in the backward pass, every level recomputes."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from anytimeify import AnytimeWarning, NestedChannels, Outputs, SandwichSampler, SchemeError, load, transform
from anytimeify._torch import prepare_torchvision
from anytimeify.codegen.recompute import part_numbers, recomputing
from anytimeify.contract.spec import SpecError, verify
from anytimeify.errors import ArtifactError
from anytimeify.runtime.model import AnytimeModel
from anytimeify.storage.graphs import decode_program, encode_program

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block with everything that a second run could do twice: statistics and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 8)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.dropout(self.norm(self.inner(x)).sigmoid().tanh()))  # type: ignore[no-any-return]


class Blocks(nn.Module):
    def __init__(self, reentrant: bool = False, count: int = 2) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)  # type: ignore[no-any-return]


def pair(model: nn.Module, scheme: Any, inputs: Any = X) -> tuple[AnytimeModel, AnytimeModel]:
    """The same model without and with recomputation, training."""
    plain = transform(model, scheme, inputs, verify=False).train()
    saving = transform(model, scheme, inputs, checkpoint=True).train()  # verified as any other
    assert list(saving.state_dict()) == list(plain.state_dict())
    saving.load_state_dict(plain.state_dict())
    return plain, saving


@cache
def _nested() -> tuple[AnytimeModel, AnytimeModel]:
    return pair(Blocks(), NestedChannels((0.5, 1.0)))


def nested() -> tuple[AnytimeModel, AnytimeModel]:
    return copy.deepcopy(_nested())


def trained(net: nn.Module, inputs: Any = X, **kwargs: Any) -> int:
    """One step of training from a fixed random state; the bytes that were saved for the backward pass."""
    storages: dict[int, Tensor] = {}  # holds what it counts, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = net(**inputs, **kwargs) if isinstance(inputs, dict) else net(inputs, **kwargs)
        every = result.levels if isinstance(result, Outputs) else [result]
        loss = torch.stack([one.square().sum() for one in every]).sum()
    loss.backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def assert_same_training(one: nn.Module, other: nn.Module) -> None:
    wanted = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, msg=name)
    buffers = dict(other.named_buffers())
    for name, buffer in one.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], msg=name)


SCHEMES = [
    "nested-channels{widths=0.5,1}",
    "nested-channels{widths=0.5,1 norms=shared heads=shared}",
    "nested-channels{widths=0.5,1 connectivity=triangular}",
    "nested-weights{densities=0.5,1}",
    "nested-depth{depths=0.5,1}",
    "auxiliary-branches{branches=1}",
    "hierarchical-ensemble{splits=(blocks.0,2)}",
]


@pytest.mark.parametrize(("scheme", "reentrant"), [(SCHEMES[0], True), *((scheme, False) for scheme in SCHEMES)])
def test_training_is_the_same_and_saves_less(scheme: str, reentrant: bool) -> None:
    plain, saving = pair(Blocks(reentrant).train(), scheme)
    alone = [(copy.deepcopy(plain), copy.deepcopy(saving)) for _ in plain.levels]
    assert trained(saving) < 0.8 * trained(plain)
    assert_same_training(saving, plain)
    for level, (one, other) in enumerate(alone):
        assert trained(other, level=level) < 0.8 * trained(one, level=level)
        assert_same_training(other, one)
    assert all(parameter.grad is not None for parameter in saving.parameters() if parameter.requires_grad)


def test_a_pair_of_backbones() -> None:
    backbones: Any = (Blocks(), Blocks())
    plain, saving = pair(backbones, "mutual-distillation")
    assert trained(saving) < 0.8 * trained(plain)
    assert_same_training(saving, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", ["nested-channels{widths=0.5,1}", "hierarchical-ensemble", "auxiliary-branches{branches=1}"]
)
def test_a_transformer(scheme: str) -> None:
    prepare_torchvision()
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    model: Any = BertForSequenceClassification(BertConfig(vocab_size=20, num_hidden_layers=2, **sizes))
    inputs = {"input_ids": torch.randint(0, 20, (4, 24), generator=torch.Generator().manual_seed(0))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library says of itself
        model.gradient_checkpointing_enable({"use_reentrant": False})
        plain, saving = pair(model.train(), scheme, inputs)
    assert trained(saving, inputs) < 0.25 * trained(plain, inputs)
    assert_same_training(saving, plain)


def test_the_full_level_has_the_gradients_of_the_backbone() -> None:
    model = Blocks().train()
    _, saving = pair(model, NestedChannels((0.5, 1.0)))
    for module in (*model.modules(), *saving.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trained(saving, level=-1)
    trained(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(saving.get_parameter(name).grad, parameter.grad)


def test_statistics_move_once_a_batch() -> None:
    _, saving = nested()
    before = [int(counter) for name, counter in saving.named_buffers() if "num_batches" in name]
    trained(saving)
    after = [int(counter) for name, counter in saving.named_buffers() if "num_batches" in name]
    assert after == [count + 1 for count in before]


def test_what_is_computed_twice_is_computed_in_the_backward_pass() -> None:
    _, saving = nested()
    calls: list[int] = []
    saving.get_submodule("blocks.0.inner").register_forward_hook(lambda *_: calls.append(1))
    result = saving(X, level=-1).sum()
    assert len(calls) == 1
    result.backward()
    assert len(calls) == 2
    with torch.no_grad():
        saving(X, level=-1)
    assert len(calls) == 3


def test_gradients_of_gradients() -> None:
    plain, saving = pair(Blocks().eval(), NestedChannels((0.5, 1.0)))
    found = []
    for net in (plain.double().eval(), saving.double().eval()):
        x = X.double().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x, level=0).sigmoid().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(found[0], found[1])


def test_copies_saved_files_and_new_heads_recompute(tmp_path: Path) -> None:
    plain, saving = nested()
    twin = copy.deepcopy(saving)
    saving.save(tmp_path / "net")
    loaded = load(tmp_path / "net").train()
    bytes_saved = trained(saving)
    assert trained(twin) == trained(loaded) == bytes_saved < 0.8 * trained(plain)
    assert_same_training(twin, plain)
    assert_same_training(loaded, plain)
    saving.reset_classifier(7)
    assert saving.checkpoint
    assert trained(saving) < 0.8 * trained(plain)


def test_a_copy_of_a_graph_is_a_copy() -> None:
    _, saving = nested()
    graph = copy.deepcopy(saving.graph(0))
    graph(X).sum().backward()
    assert all(parameter.grad is None for parameter in saving.parameters())
    assert all(parameter.grad is not None for name, parameter in graph.named_parameters() if "blocks.0.inner" in name)


def test_compiled() -> None:
    plain, saving = pair(Blocks(), NestedChannels((0.5, 1.0), norms="shared"))
    for module in (*plain.modules(), *saving.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # compilers draw other random numbers
    compiled: Any = torch.compile(saving, fullgraph=True, backend="aot_eager")
    trained(compiled)
    trained(plain)
    assert_same_training(saving, plain)


def test_exported() -> None:
    _, saving = pair(Blocks().eval(), NestedChannels((0.5, 1.0)))
    saving.eval()
    exported = torch.export.export(saving.graph(0), (X,), strict=False)
    torch.testing.assert_close(exported.module()(X), saving(X, level=0))


def test_sampled_widths_recompute() -> None:
    scheme = NestedChannels((0.25, 1.0), norms="shared", heads="shared")
    plain, saving = pair(Blocks(), scheme)
    samplers = [SandwichSampler(net, 3, generator=torch.Generator().manual_seed(2)) for net in (plain, saving)]
    assert trained(samplers[1]) < 0.8 * trained(samplers[0])
    assert_same_training(saving, plain)


def test_the_report_says_what_is_left_out() -> None:
    plain, saving = nested()
    assert any("recomputation of 2 parts" in note and "checkpoint=True" in note for note in plain.report().notes)
    assert not any("recompu" in note for note in saving.report().notes)
    nothing = transform(Block(), NestedChannels((0.5, 1.0)), torch.randn(4, 8), checkpoint=True)
    assert any("checkpoint=True changes nothing" in note for note in nothing.report().notes)


def test_other_values_are_refused() -> None:
    with pytest.raises(SchemeError, match="checkpoint='yes': expected True or False"):
        transform(Blocks(), NestedChannels((0.5, 1.0)), X, checkpoint="yes")  # type: ignore[arg-type]


class Nested(nn.Module):
    """A checkpoint inside of another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = nn.Linear(6, 8), Block(), Block(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        def both(x: Tensor) -> Tensor:
            inner: Tensor = checkpoint(self.first, x, use_reentrant=True)
            result: Tensor = self.second(inner)
            return result

        return self.head(checkpoint(both, self.stem(x), use_reentrant=False))  # type: ignore[no-any-return]


def test_a_part_inside_of_another_belongs_to_it() -> None:
    plain, saving = pair(Nested(), NestedChannels((0.5, 1.0)))
    assert part_numbers(saving.captured.program.graph) == (1,)
    trained(plain)
    trained(saving)
    assert_same_training(saving, plain)


class Remembering(nn.Module):
    """What it computes reads a buffer that it then writes to: a second run would read another value."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.register_buffer("memory", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.remember, self.stem(x), use_reentrant=False))  # type: ignore[no-any-return]

    def remember(self, x: Tensor) -> Tensor:
        x = self.inner(x * self.memory).tanh()
        if self.training:
            with torch.no_grad():
                self.memory.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return x * self.memory


@pytest.mark.parametrize("scheme", ["nested-channels{widths=0.5,1}", "hierarchical-ensemble{splits=(inner,2)}"])
def test_a_part_that_reads_what_it_writes_is_not_run_again(scheme: str) -> None:
    # The backbone can be differentiated only because it recomputes what it has overwritten.
    with pytest.warns(AnytimeWarning, match="training was not compared .* modified by an inplace operation"):
        plain, saving = pair(Remembering().train(), scheme)
    for _ in range(2):
        trained(plain)
        trained(saving)
    assert_same_training(saving, plain)
    assert not torch.equal(saving.get_buffer("memory"), torch.ones(8))


def test_a_part_that_reads_what_was_made_of_it_is_cut() -> None:
    root, parameter = nn.Module(), nn.Parameter(torch.tensor([2.0]))
    root.register_parameter("weight", parameter)
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    numbered = []

    def call(target: Any, *args: Any, number: int | None = None) -> fx.Node:
        node = graph.call_function(target, args)
        if number is not None:
            node.meta["checkpoint"] = number
            numbered.append(node)
        return node

    a = call(torch.mul, x, weight, number=1)
    b = call(torch.sin, a, number=1)
    c = call(torch.exp, b, number=2)  # outside of the first part, and a part that reads and feeds it
    other = call(torch.cos, b)
    d = call(torch.sigmoid, a, number=1)
    e = call(torch.add, c, d, number=1)
    f = call(torch.tanh, e, number=1)
    g = call(torch.mul, f, c, number=2)
    h = call(torch.sin, g, number=2)
    graph.output((h, other, d))
    reference = fx.GraphModule(root, copy.deepcopy(graph))
    module = recomputing(graph, root)
    graph.lint()
    assert not set(numbered) & set(module.graph.nodes) - {c}
    values = torch.linspace(-1, 1, 5, requires_grad=True)
    found, wanted = module(values), reference(values)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(torch.stack(found).sum(), [parameter, values]),
        torch.autograd.grad(torch.stack(wanted).sum(), [parameter, values]),
    )


def test_a_number_that_is_none_is_refused() -> None:
    program = nested()[0].captured.program
    assert part_numbers(decode_program(encode_program(program), program.tensors).graph) == (1, 2)
    data = encode_program(program)
    next(entry for entry in data["nodes"] if "checkpoint" in entry)["checkpoint"] = "first"
    with pytest.raises(ArtifactError, match="has no number"):
        decode_program(data, program.tensors)
    next(node for node in program.graph.nodes if "checkpoint" in node.meta).meta["checkpoint"] = None
    with pytest.raises(SpecError, match="the number of the recomputed part"):
        verify(program, after="a test")
