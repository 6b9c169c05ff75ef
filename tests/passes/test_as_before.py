"""Buffers that a forward pass reads and writes to: what is read is what was there before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify import transform
from anytimeify.capture import capture
from anytimeify.operators.modes import BUFFER_BEFORE
from anytimeify.passes.rewrites.as_before import as_before

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.low, self.mid, self.top = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.register_buffer("state", torch.randn(16, 8))

    def read(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.top(self.mid(self.read(self.low(x).relu())).relu())
        return result


class Codebook(Net):
    """Vector quantisation: codes follow the average of what falls to them, and are read before that."""

    def read(self, x: Tensor) -> Tensor:
        chosen = torch.cdist(x, self.state).argmin(1)
        codes = self.state[chosen]
        if self.training:
            hits = F.one_hot(chosen, len(self.state)).float()
            mean = hits.t() @ x.detach() / hits.sum(0).clamp(min=1).unsqueeze(1)
            self.state.mul_(0.5).add_(mean, alpha=0.5)
        return x + (codes - x).detach()


class Renorm(Net):
    """Normalises by the batch, corrected by statistics that are updated behind that."""

    def read(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.state[0]
        mean = x.mean(0)
        result = x - mean + (mean - self.state[0]).clamp(-1, 1).detach()
        self.state += 0.5 * (mean.detach() - self.state)
        return result


class Queue(Net):
    """Products with what the batches before have left: their derivatives need it after it has been replaced."""

    def read(self, x: Tensor) -> Tensor:
        result = torch.tanh(x @ self.state.t()) @ self.state
        if self.training:
            self.state = torch.cat([x.detach()[:2], self.state[:-2]])
        return result


@pytest.mark.parametrize("kind", [Codebook, Renorm, Queue])
@pytest.mark.parametrize(
    ("scheme", "full"),
    [
        ("nested-channels{widths=0.5,1}", -1),
        ("hierarchical-ensemble{depth=1}", 0),
        ("auxiliary-branches{branches=1}", -1),
    ],
)
def test_training_reads_a_buffer_as_it_was(kind: type[Net], scheme: str, full: int) -> None:
    torch.manual_seed(0)
    model = kind()
    backbone = copy.deepcopy(model)
    net = transform(model, scheme, X).train()
    for step in range(2):
        x = X + step
        found, want = net(x, level=full), backbone(x)
        torch.testing.assert_close(found, want)
        (got,) = torch.autograd.grad(found.square().sum(), net.get_parameter("low.weight"))
        (need,) = torch.autograd.grad(want.square().sum(), backbone.low.weight)
        torch.testing.assert_close(got, need)
        torch.testing.assert_close(net.get_buffer("state"), backbone.state)


class Average(Net):
    def read(self, x: Tensor) -> Tensor:
        if self.training:
            self.state.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.state[0]


def test_a_buffer_that_only_its_next_value_is_made_of_is_not_copied() -> None:
    program = capture(Average(), X).program
    assert as_before(program) is program


def test_one_copy_of_a_buffer_that_is_read() -> None:
    program = as_before(capture(Codebook(), X).program)
    (copied,) = [node for node in program.graph.nodes if node.target is BUFFER_BEFORE]
    (reader,) = copied.all_input_nodes
    assert reader.target == "state"
    assert {user.target.name() for user in reader.users if user is not copied} == {"anytimeify::update_buffer"}
