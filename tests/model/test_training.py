"""Training, modes, precisions, compilation and several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anytimeify import NestedChannels, transform
from tests.backbones import Shapes, images, residual_net
from tests.processes import run_in_two_processes
from tests.rounding import close


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


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_another_precision_reaches_every_graph(kind: torch.dtype) -> None:
    net, x = residual_net(), images()
    net.to(kind)
    outputs = net(x.to(kind))
    for index in range(3):
        assert outputs.levels[index].dtype == kind
        assert close(net(x.to(kind), level=index), outputs.levels[index])
        assert close(net.extract(index)(x.to(kind)), outputs.levels[index])


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
from torch.nn.parallel import DistributedDataParallel
from tests.backbones import residual_net, images

torch.manual_seed(0)
net = residual_net(verify=False).train()
model = DistributedDataParallel(net)
optimiser = torch.optim.SGD(net.parameters(), 0.1)
for step in range(3):
    optimiser.zero_grad()
    net.loss(model(images(8, seed=10 * step + rank)), torch.arange(8) % 5).backward()
    optimiser.step()
mine = torch.cat([p.detach().flatten() for p in net.parameters()])
"""


@pytest.mark.distributed
def test_distributed_data_parallel_needs_no_special_flags(tmp_path: Path) -> None:
    run_in_two_processes(DISTRIBUTED, tmp_path)
