"""Two processes learn from a batch what one learns: by DistributedDataParallel and by FSDP2, under every scheme."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anytimeify import (
    AnytimeModel,
    AuxiliaryBranches,
    HierarchicalEnsemble,
    MutualDistillation,
    NestedChannels,
    NestedDepth,
    NestedResolution,
    NestedWeights,
    transform,
)
from anytimeify.passes.scheme import Scheme
from anytimeify.train import Data, Held, OneAfterTheOther, Optimiser, Order, Sandwich, Schedule, Together, Training, fit
from tests.processes import run_in_two_processes
from tests.train.residual import Residual

CASES: dict[str, tuple[Scheme, Order]] = {
    "channels": (NestedChannels((0.5, 1.0)), Together()),
    "triangular": (NestedChannels((0.5, 1.0), connectivity="triangular"), Together()),
    "one after the other": (NestedChannels((0.5, 1.0)), OneAfterTheOther()),
    "sandwich": (NestedChannels((0.25, 0.5, 1.0)), Sandwich(random=1)),
    "weights": (NestedWeights((0.3, 1.0)), Together()),
    "depth": (NestedDepth((0.5, 1.0)), Together()),
    "resolution": (NestedResolution((0.5, 1.0)), Together()),
    "ensemble": (HierarchicalEnsemble(depth=1), Together()),
    "branches": (AuxiliaryBranches(branches=1), Together()),
    "mutual": (MutualDistillation(branches=1), Together()),
}
TRAINING = Training(
    data="random",
    optimiser=Optimiser(learning_rate=1.0, weight_decay=0.0, momentum=0.0),  # so that a step is the gradient
    schedule=Schedule(kind="steps"),
    batch=12,
    epochs=1,
    frozen_norms=True,  # their statistics would be of half a batch
)


def data() -> Data:
    generator = torch.Generator().manual_seed(3)
    held = Held(torch.randn(12, 3, 8, 8, generator=generator), torch.arange(12) % 4)
    return Data("random", held, held, tuple("abcd"))


def network(name: str) -> AnytimeModel:
    torch.manual_seed(0)
    scheme = CASES[name][0]
    model: Any = (Residual(4), Residual(4)) if isinstance(scheme, MutualDistillation) else Residual(4)
    return transform(model, scheme, torch.randn(2, 3, 8, 8), verify=False)


def trained(name: str, shard: bool = False, **options: Any) -> dict[str, Tensor]:
    """The weights after one step of `fit`, whole."""
    from anytimeify.train.distribution import whole

    net = network(name)
    fit(net, data(), replace(TRAINING, order=CASES[name][1], shard=shard), **options)
    return dict(whole({name: parameter.detach() for name, parameter in net.named_parameters()}))


SCRIPT = """
import os

os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # of the group that there is
from accelerate import Accelerator
from tests.train.test_distributed import CASES, trained

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
alone = torch.load(sys.argv[2] + "-alone", weights_only=True)
everything = []
for name in CASES:
    for shard in (False, True):
        found = trained(name, shard, accelerator=accelerator)
        for key, value in alone[name].items():
            difference = (found[key] - value).abs().max()
            assert difference < 1e-5, (name, shard, key, difference)
        everything += [value.flatten() for value in found.values()]
mine = torch.cat(everything)
"""
RESUMED = """
import os
from dataclasses import replace

os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
from accelerate import Accelerator
from anytimeify import load
from anytimeify.train import Optimiser, fit
from anytimeify.train.distribution import whole
from tests.train.test_distributed import TRAINING, data, network

accelerator = Accelerator(cpu=True)
training = replace(TRAINING, shard=True, batch=4, epochs=3, ema=0.9, calibrate=0)
training = replace(training, optimiser=Optimiser(kind="adamw", learning_rate=1e-3, weight_decay=0.1))
out = sys.argv[2] + "-run"
whole_run = network("channels")
fit(whole_run, data(), training, accelerator=accelerator, out=out)
if rank == 0:
    os.remove(sorted(os.scandir(out + "/checkpoints"), key=lambda entry: entry.name)[-1].path)
    os.remove(out + "/net.safetensors")
accelerator.wait_for_everyone()
resumed = network("channels")
fit(resumed, data(), training, accelerator=accelerator, out=out, resume=True)
accelerator.wait_for_everyone()
pairs = [whole(dict(net.state_dict())) for net in (whole_run, resumed)]
written = load(out + "/net.safetensors").state_dict()
for name, value in pairs[0].items():
    torch.testing.assert_close(pairs[1][name], value)
    torch.testing.assert_close(written[name], value)
mine = torch.cat([value.flatten().float() for value in pairs[1].values()])
"""


@pytest.mark.distributed
def test_gradients_are_those_of_the_joint_batch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    torch.save({name: trained(name) for name in CASES}, f"{tmp_path / 'meeting'}-alone")
    run_in_two_processes(SCRIPT, tmp_path)


@pytest.mark.distributed
def test_spread_runs_go_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_in_two_processes(RESUMED, tmp_path)
    assert os.path.exists(f"{tmp_path / 'meeting'}-run/curves.png")
