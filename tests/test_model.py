"""`AnytimeModel`: its levels, its names, and everything that users do to a module."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytimeify import (
    AnytimeModel,
    Budget,
    BudgetError,
    JointLoss,
    NestedChannels,
    Outputs,
    SchemeError,
    VerificationError,
    extraction,
    load,
    transform,
    verification,
)
from anytimeify.capture import capture
from tests.backbones import Clashing, Keywords, Nested, Residual, Shapes, images, residual_net


def close(result: Tensor, expected: Tensor) -> bool:
    return bool((result - expected).abs().max() <= 1e-5 * expected.abs().max())


# Levels.


def test_outputs_are_the_levels_cheapest_first() -> None:
    net, x = residual_net(), images()
    outputs = net(x)
    assert isinstance(outputs, Outputs)
    assert [tuple(prediction.shape) for prediction in outputs.levels] == [(4, 5)] * 3
    assert outputs.members == ()
    for index, level in enumerate(net.levels):
        assert level.index == index
        assert torch.equal(net(x, level=index), outputs.levels[index])
        assert torch.equal(net(x, level=level), outputs.levels[index])
        assert torch.equal(net(x, level=index - 3), outputs.levels[index])
    macs, params = [level.cost.macs for level in net.levels], [level.cost.params for level in net.levels]
    assert macs == sorted(set(macs))
    assert params == sorted(set(params))


def test_the_full_level_is_the_backbone_and_the_backbone_is_untouched() -> None:
    backbone = Residual()
    before = copy.deepcopy(backbone.state_dict())
    net = transform(backbone, NestedChannels((0.5, 1.0)), images())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert backbone.training
    assert net.training
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    backbone.eval()
    net.eval()
    assert close(net(images(), level=-1), backbone(images()))
    with torch.no_grad():
        net.get_parameter("fc.weight").zero_()
    assert torch.equal(backbone.fc.weight, before["fc.weight"])


def test_one_level_alone_computes_that_level_alone() -> None:
    net = residual_net()
    names = {node.name for node in net.graphs[1].graph.nodes}
    assert any(name.startswith("level0_") for name in names)
    assert not any(name.startswith("level1_") for name in names)
    for index, level in enumerate(net.levels[:-1]):
        assert len(net.graphs[1 + index].graph.nodes) < len(net.graphs[0].graph.nodes)
        assert level.cost.macs < net.levels[-1].cost.macs


@pytest.mark.parametrize("level", [3, -4, 100])
def test_a_level_that_is_not_there_is_refused(level: int) -> None:
    with pytest.raises(BudgetError, match=r"levels are 0 \(cheapest\) to 2 \(full\)"):
        residual_net()(images(), level=level)


def test_stream_runs_level_after_level() -> None:
    net, x = residual_net(), images()
    assert not net.resumable
    seen = list(net.stream(x))
    assert tuple(level for level, _ in seen) == net.levels
    for (_, prediction), expected in zip(seen, net(x).levels, strict=True):
        assert torch.equal(prediction, expected)


def test_members_and_training_only_levels() -> None:
    made = residual_net()
    rewritten = made.rewritten
    changed = dataclasses.replace(rewritten, training_only=frozenset({0}), members=(0, 2))
    net = AnytimeModel(made.captured, made.axes, made.scheme, changed).eval()
    outputs = net(images())
    assert [torch.equal(outputs.members[i], outputs.levels[j]) for i, j in ((0, 0), (1, 2))] == [True, True]
    assert [level.index for level, _ in net.stream(images())] == [1, 2]
    assert net.select(Budget(macs=net.levels[1].cost.macs)).index == 1
    with pytest.raises(BudgetError, match=r"the cheapest, level 1 \(width 0.5\)"):
        net.select(Budget(macs=net.levels[0].cost.macs))
    with pytest.raises(BudgetError, match="training only"):
        net.select(Budget(level=0))
    net.extract(0)


# Calling.


def test_keywords_constants_and_a_structured_result() -> None:
    backbone, x, scale = Keywords().eval(), torch.randn(4, 4), torch.randn(4, 1)
    net = transform(backbone, NestedChannels((0.5, 1.0)), {"x": x, "scale": scale, "double": True})
    expected = backbone(x, scale, double=True)["logits"]
    for result in (
        net(x=x, scale=scale, double=True, level=-1),
        net(x, scale, level=-1),
        net(x, scale=scale, level=1),
        net.extract(1)(x=x, scale=scale),
        net.extract(1)(x, scale, True),
        net.extract(1)(scale=scale, x=x, double=True),
    ):
        assert close(result, expected)
    with pytest.raises(TypeError, match=r"input 'double' was True .* cannot be False now"):
        net(x, scale, double=False)


def test_nested_inputs() -> None:
    backbone = Nested().eval()
    pair, extra = [torch.randn(4, 4), torch.randn(4, 4)], {"bias": torch.randn(4, 3)}
    net = transform(backbone, NestedChannels((0.5, 1.0)), (pair, extra))
    assert close(net(pair, extra, level=-1), backbone(pair, extra))
    for level in net.levels:
        assert torch.equal(net.extract(level)(pair, extra), net(pair, extra, level=level))
    with pytest.raises(TypeError, match="another structure"):
        net(pair[:1], extra)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "input 'x' is missing"),
        ((images(), images()), {}, "2 inputs given, but the backbone takes 1: x"),
        ((), {"y": images()}, "input 'y' is unknown: the backbone takes x"),
        ((images(),), {"x": images()}, "input 'x' is given twice"),
    ],
)
def test_wrong_arguments(args: tuple[Tensor, ...], kwargs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        residual_net()(*args, **kwargs)


def test_a_single_tensor_may_be_named() -> None:
    net, x = residual_net(), images()
    assert torch.equal(net(x=x, level=0), net(x, level=0))


# Names and state.


def test_the_state_dict_is_the_backbones_and_what_the_scheme_adds() -> None:
    net, backbone = residual_net(), Residual()
    added = net.state_dict().keys() - backbone.state_dict().keys()
    assert backbone.state_dict().keys() <= net.state_dict().keys()
    assert all(name.startswith("anytime.") for name in added)
    assert net.load_state_dict(backbone.state_dict(), strict=False).unexpected_keys == []
    backbone.eval()
    assert close(net(images(), level=-1), backbone(images()))


def test_children_named_like_members_of_the_model() -> None:
    backbone = Clashing()
    net = transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(4, 4)).eval()
    assert backbone.state_dict().keys() <= net.state_dict().keys()
    assert len(net.levels) == 2
    assert isinstance(net.loss, JointLoss)
    assert torch.equal(net.get_parameter("loss.weight"), backbone.loss.weight)
    assert torch.equal(net.get_submodule("levels").get_parameter("weight"), backbone.levels.weight)
    net.loss = JointLoss(reduction="mean")
    x = torch.randn(4, 4)
    assert close(net(x, level=-1), backbone.eval()(x))
    assert torch.equal(net.extract(0)(x), net(x, level=0))


def test_children_named_like_members_of_a_graph_module(tmp_path: Path) -> None:
    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph, self.code, self.meta = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.meta(self.code(self.graph(x)))
            return result

    backbone, x = Graphs(), torch.randn(4, 4)
    net = transform(backbone, NestedChannels((0.5, 1.0)), x).eval()
    assert backbone.state_dict().keys() <= net.state_dict().keys()
    backbone.graph.weight.data.mul_(2)
    assert not net.load_state_dict(backbone.state_dict(), strict=False).unexpected_keys
    assert close(net(x, level=-1), backbone.eval()(x))
    net.save(tmp_path / "net.safetensors")
    for same in (load(tmp_path / "net.safetensors"), copy.deepcopy(net)):
        assert same.state_dict().keys() == net.state_dict().keys()
        assert torch.equal(same(x, level=0), net(x, level=0))


def test_the_loss_can_be_replaced_and_follows_the_model() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("offset", torch.zeros(()), persistent=False)

        def forward(self, outputs: Outputs, target: Tensor) -> Tensor:
            terms = [nn.functional.cross_entropy(prediction, target) for prediction in outputs.levels]
            result: Tensor = (torch.stack(terms) * self.weight).sum() + self.get_buffer("offset")
            return result

    net = residual_net()
    keys, parameters = net.state_dict().keys(), len(list(net.parameters()))
    net.loss = Learned()
    assert net.state_dict().keys() - keys == {"anytime.loss.weight"}
    assert len(list(net.parameters())) == parameters + 1
    net.double()
    assert net.loss.offset.dtype == torch.float64
    net.loss(net(images().double()), torch.tensor([0, 1, 2, 3])).backward()
    assert net.loss.weight.grad is not None
    net.loss = JointLoss()
    assert net.state_dict().keys() == keys
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        net.loss = nn.functional.cross_entropy  # type: ignore[assignment]  # refused input


def test_it_prints_like_the_backbone() -> None:
    text = repr(residual_net())
    assert text.startswith("AnytimeModel(\n  nested-channels{widths=0.25,0.5,1}, 3 levels\n")
    assert "(stem): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)" in text


# Training and everything that is done to modules.


def test_all_levels_train_together_and_only_what_is_used_wants_gradients() -> None:
    net = residual_net().train()
    loss = net.loss(net(images()), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    missing = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert missing == {"unused.weight", "unused.bias"}
    assert not any(net.get_parameter(name).requires_grad for name in missing)


def test_dense_predictions_train() -> None:
    net = transform(Shapes(), NestedChannels((0.5, 1.0)), images())
    net.loss(net(images()), torch.zeros(4, 6, 6, dtype=torch.long)).backward()


def test_train_and_eval() -> None:
    net, x = residual_net(), images()
    assert torch.equal(net(x, level=0), net(x, level=0))
    net.train()
    assert not torch.equal(net(x, level=0), net(x, level=0))  # dropout
    before = net.get_buffer("anytime.0.bn1.running_mean").clone()
    net(x)
    assert not torch.equal(net.get_buffer("anytime.0.bn1.running_mean"), before)


@pytest.mark.slow
def test_compile_to_machine_code() -> None:
    net, x = residual_net(), images()
    compiled = torch.compile(net)
    for result, expected in zip(compiled(x).levels, net(x).levels, strict=True):
        assert close(result, expected)
    net.train()
    net.loss(compiled(x), torch.tensor([0, 1, 2, 3])).backward()
    small = net.eval().extract(0)
    assert close(torch.compile(small)(x), small(x))


def test_deepcopy_shares_nothing_and_keeps_replaced_children() -> None:
    net, x = residual_net(), images()
    net.drop = nn.Identity()
    twin = copy.deepcopy(net)
    expected = [prediction.clone() for prediction in net(x).levels]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for index, prediction in enumerate(expected):
        assert torch.equal(twin(x).levels[index], prediction)
        assert torch.equal(twin(x, level=index), prediction)
    assert isinstance(twin.drop, nn.Identity)
    assert twin.loss is not net.loss
    assert not torch.equal(net(x, level=-1), expected[-1])


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_another_precision_reaches_every_graph(kind: torch.dtype) -> None:
    net, x = residual_net(), images()
    net.to(kind)
    outputs = net(x.to(kind))
    for index in range(3):
        assert outputs.levels[index].dtype == kind
        assert torch.equal(net(x.to(kind), level=index), outputs.levels[index])
        assert torch.equal(net.extract(index)(x.to(kind)), outputs.levels[index])


def test_a_replaced_child_reaches_every_graph() -> None:
    net, x = residual_net(), images()
    net.fc = nn.Linear(8, 7)
    assert net(x).levels[2].shape == (4, 7)
    assert net(x, level=2).shape == (4, 7)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert converted is net
    assert isinstance(net.bn1, nn.SyncBatchNorm)


def test_pickling_says_what_to_do_instead(tmp_path: Path) -> None:
    net = residual_net()
    with pytest.raises(TypeError, match=r"net\.save"):
        pickle.dumps(net)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    other = residual_net()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(images(), level=0), net(images(), level=0))


def test_compile_of_the_training_model_and_of_an_extract() -> None:
    net, x = residual_net(), images()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for result, expected in zip(compiled(x).levels, net(x).levels, strict=True):
        assert close(result, expected)
    assert close(compiled(x, level=0), net(x, level=0))
    net.train()
    net.loss(compiled(x), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)
    net.eval()
    small = net.extract(1)
    assert close(torch.compile(small, fullgraph=True, backend="aot_eager")(x), small(x))


DISTRIBUTED = """
import os, sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tests.backbones import residual_net, images

torch.set_num_threads(1)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
net = residual_net(verify=False).train()
model = DistributedDataParallel(net)
optimiser = torch.optim.SGD(net.parameters(), 0.1)
for step in range(3):
    optimiser.zero_grad()
    net.loss(model(images(8, seed=10 * step + rank)), torch.arange(8) % 5).backward()
    optimiser.step()
weights = torch.cat([p.detach().flatten() for p in net.parameters()])
both = [torch.empty_like(weights) for _ in range(2)]
distributed.all_gather(both, weights)
assert torch.equal(*both)
assert weights.isfinite().all()
distributed.destroy_process_group()
"""


def test_distributed_data_parallel_needs_no_special_flags(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISTRIBUTED]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


# Extraction.


@pytest.mark.parametrize("fold", [False, True])
def test_extracts_are_small_and_equal_their_level(fold: bool) -> None:
    net, x = residual_net(), images()
    storages = {tensor.untyped_storage().data_ptr() for tensor in net.tensors().values()}
    for level in net.levels:
        small = net.extract(level, fold=fold)
        assert not small.training
        assert close(small(x), net(x, level=level))
        if not fold:
            assert torch.equal(small(x), net(x, level=level))
            assert sum(parameter.numel() for parameter in small.parameters()) == level.cost.params
            assert small.state_dict().keys() == Residual().state_dict().keys() - {"unused.weight", "unused.bias"}
        else:
            assert not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
            assert {"stem.weight", "stem.bias"} <= small.state_dict().keys()
        for tensor in small.state_dict().values():
            assert tensor.untyped_storage().data_ptr() not in storages
    assert [node.name for node in net.extract(0).graph.nodes][:3] == ["x", "stem", "bn1"]


def test_an_extract_follows_the_weights_as_they_are_now() -> None:
    net, x = residual_net(), images()
    before = net.extract(0)
    with torch.no_grad():
        net.get_parameter("stem.weight").mul_(2)
    assert torch.equal(net.extract(0)(x), net(x, level=0))
    assert not torch.equal(before(x), net(x, level=0))


def test_an_extract_by_budget() -> None:
    net, x = residual_net(), images()
    assert torch.equal(net.extract(Budget(macs=net.levels[1].cost.macs))(x), net(x, level=1))


def test_an_extract_runs_where_anytimeify_was_never_imported(tmp_path: Path) -> None:
    net, x = residual_net(), images()
    small = net.extract(0)
    torch.save(small, tmp_path / "small.pt")
    exported = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, tmp_path / "small.pt2")
    torch.save((x, net(x, level=0).detach()), tmp_path / "data.pt")
    script = textwrap.dedent(
        """
        import sys, torch
        x, expected = torch.load("data.pt")
        pickled = torch.load("small.pt", weights_only=False)
        exported = torch.export.load("small.pt2").module()
        for module in (pickled, exported):
            torch.testing.assert_close(module(x), expected)
            torch.testing.assert_close(module(x[:3]), expected[:3])
        assert not any(name.split(".")[0] in ("anytimeify", "passes") for name in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Calibration.


def test_calibrate_gives_the_mean_of_the_batch_statistics() -> None:
    net = residual_net()
    net.get_submodule("drop").train()
    batches = [images(16, seed) for seed in range(4)]
    stem = [nn.functional.conv2d(x, net.get_parameter("stem.weight"), padding=1) for x in batches]
    net.calibrate(batches)
    mean = torch.stack([y.mean((0, 2, 3)) for y in stem]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in stem]).mean(0)
    torch.testing.assert_close(net.get_buffer("bn1.running_mean"), mean)
    torch.testing.assert_close(net.get_buffer("bn1.running_var"), var)
    torch.testing.assert_close(net.get_buffer("anytime.0.bn1.running_mean"), mean[:2])
    assert net.get_buffer("bn1.num_batches_tracked") == 4
    assert net.get_submodule("bn1").momentum == 0.1
    assert not net.training
    assert net.get_submodule("drop").training


def test_calibrate_takes_batches_of_a_data_loader() -> None:
    net = residual_net()
    other = copy.deepcopy(net)
    net.calibrate([images(16)])
    dataset = torch.utils.data.TensorDataset(images(16), torch.zeros(16))
    other.calibrate(torch.utils.data.DataLoader(dataset, batch_size=16))
    for name, tensor in net.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(other.state_dict()[name], tensor)


def test_calibrate_of_shared_norms_estimates_the_full_level() -> None:
    net = residual_net(NestedChannels((0.5, 1.0), norms="shared"))
    private = residual_net(NestedChannels((0.5, 1.0)))
    private.load_state_dict(net.state_dict(), strict=False)
    for model in (net, private):
        model.calibrate([images(16, 1), images(16, 2)])
    torch.testing.assert_close(net.get_buffer("bn2.running_var"), private.get_buffer("bn2.running_var"))


def test_calibrate_without_batches_changes_nothing() -> None:
    net = residual_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match="no batches"):
        net.calibrate([])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


# Making one.


def test_schemes_as_objects_text_and_sequences() -> None:
    for scheme in (NestedChannels((0.5, 1.0)), "nested-channels{widths=0.5,1}", [NestedChannels((0.5, 1.0))]):
        assert len(transform(Residual(), scheme, images(), verify=False).levels) == 2


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ([NestedChannels(), NestedChannels()], "2 schemes were given: schemes cannot be composed yet"),
        ([], "expected a scheme"),
        (None, "expected a scheme"),
        ("nested-canals", "'nested-canals' is not a scheme"),
    ],
)
def test_refused_schemes(scheme: object, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        transform(Residual(), scheme, images())  # type: ignore[arg-type]  # refused input


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_program_is_a_backbone(training: bool) -> None:
    backbone = Residual().train(training)
    exported = torch.export.export(backbone, (images(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    net = transform(exported, NestedChannels((0.5, 1.0))).eval()
    assert close(net(images(3, 1), level=-1), backbone.eval()(images(3, 1)))


# Verification.


def test_a_level_that_differs_from_its_extract_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Residual().eval()
    net = residual_net(verify=False)
    extract = extraction.extract

    def broken(*args: object, **kwargs: object) -> object:
        module = extract(*args, **kwargs)  # type: ignore[arg-type]  # passed on
        with torch.no_grad():
            module.get_parameter("conv.bias").add_(1)
        return module

    monkeypatch.setattr(extraction, "extract", broken)
    net.load_state_dict(backbone.state_dict(), strict=False)
    with pytest.raises(
        VerificationError, match=r"level 0 \(width 0.25\) differs .* first at node level0_conv \(conv, "
    ):
        verification.verify(net, backbone)


def test_a_full_level_that_differs_from_the_captured_graph_is_named() -> None:
    backbone = Residual().eval()
    net = transform(backbone, NestedChannels((0.5, 1.0)), images())
    everything = net._everything  # what copies are made from
    for graph in (everything, net.graphs[0].graph, net.graphs[-1].graph):
        for node in graph.nodes:
            if node.name == "add":
                node.target = torch.ops.aten.sub.Tensor
    for level in net.graphs[:1] + net.graphs[-1:]:
        level.recompile()
    with pytest.raises(VerificationError, match=r"the full level differs from the backbone by .*, first at node add "):
        verification.verify(net, backbone)


def test_a_backbone_that_captures_as_something_else_is_told_apart() -> None:
    backbone = Residual().eval()
    net = transform(backbone, NestedChannels((0.5, 1.0)), images())
    with torch.no_grad():
        backbone.fc.weight.add_(1)
    with pytest.raises(VerificationError, match="the captured graph, before any rewrite, differs from the backbone"):
        verification.verify(net, backbone)


def test_rounding_and_overflow_are_not_taken_for_errors() -> None:
    backbone = Residual().eval()
    with torch.no_grad():
        backbone.fc.weight.mul_(1e30)
        backbone.stem.weight.mul_(1e30)
    assert not backbone(images()).isfinite().all()
    transform(backbone, NestedChannels((0.5, 1.0)), images())


def test_differences() -> None:
    inf, nan = float("inf"), float("nan")
    assert verification.difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.4])) == pytest.approx(0.1)
    assert verification.difference(torch.tensor([inf, nan, 2.0]), torch.tensor([inf, nan, 2.0])) == 0
    assert verification.difference(torch.tensor([inf, 2.0]), torch.tensor([-inf, 2.0])) == inf
    assert verification.difference(torch.tensor([nan]), torch.tensor([1.0])) == inf
    assert verification.difference(torch.zeros(2), torch.zeros(2)) == 0
    assert verification.difference(torch.zeros(2), torch.ones(2)) == inf
    assert verification.difference(torch.zeros(0), torch.zeros(0)) == 0
    assert verification.difference(torch.zeros(1), torch.zeros(2)) == inf


def test_verification_leaves_modes_and_statistics_alone() -> None:
    backbone = Residual()
    backbone.bn1.eval()
    before = copy.deepcopy(backbone.state_dict())
    net = transform(backbone, NestedChannels((0.5, 1.0)), images(), verify=False)
    verification.verify(net, backbone)
    assert backbone.training
    assert not backbone.bn1.training
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_capture_holds_no_memory_twice() -> None:
    net = residual_net()
    live = {id(tensor) for tensor in net.tensors().values()}
    assert all(tensor.is_meta for tensor in net._definition.captured.program.tensors.values())
    assert all(id(tensor) in live for tensor in net.captured.program.tensors.values())
    assert capture(Residual(), images()).program.tensors.keys() == net.captured.program.tensors.keys()
