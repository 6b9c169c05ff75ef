"""What replicas become as one operation, and that this never changes what a member computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anytimeify import AnytimeModel, HierarchicalEnsemble, Outputs, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.ir import Program
from anytimeify.passes.rewrites.project import project


class Body(nn.Module):
    """A trunk, and behind the cut a function of two layers."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module | Tensor) -> None:
        super().__init__()
        self.stem, self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.stem(x).tanh())
        result: Tensor = self.head(y + self.function(self, y))
        return result


def rows(batch: int) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch))


def leaves_of(net: AnytimeModel, backbone: nn.Module, fanout: int) -> list[nn.Module]:
    """The backbone once per leaf behind one cut, with that leaf's part of every stack."""
    state = net.state_dict()
    leaves = []
    for leaf in range(fanout):
        model = copy.deepcopy(backbone)
        parts = {}
        for name, tensor in model.state_dict().items():
            count = len(tensor) if tensor.ndim else 1
            whole = state[name]
            stacks = whole.numel() == fanout * tensor.numel()
            parts[name] = whole[leaf * count : (leaf + 1) * count].reshape(tensor.shape) if stacks else whole
        model.load_state_dict(parts)
        leaves.append(model)
    return leaves


def assert_members_are_backbones(backbone: nn.Module, fanout: int = 3, **options: Any) -> AnytimeModel:
    """Members of the fused net against the backbone with each member's tensors, on batches of several sizes."""
    torch.manual_seed(0)
    scheme = HierarchicalEnsemble(splits=(("stem", fanout),), **options)
    net = transform(backbone.eval(), scheme, (rows(4),)).double().eval()
    leaves = leaves_of(net, backbone.double(), fanout)
    for batch in (4, 2, 5):
        x = rows(batch).double()
        outputs: Outputs = net(x)
        for member, leaf in zip(outputs.members, leaves, strict=True):
            torch.testing.assert_close(member, leaf(x), rtol=1e-9, atol=1e-9)
    return net


# What mixes samples, or looks at their place in the batch, added to what it was made from: its result then has a batch.

MIXING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "subtracted mean": lambda _, y: y - y.mean(0),
    "batch norm by hand": lambda _, y: (y - y.mean(0)) / (y.std(0) + 0.1),
    "expanded mean": lambda _, y: y.mean(0, keepdim=True).expand(y.shape[0], -1),
    "mean over everything": lambda _, y: y - y.mean(),
    "softmax over samples": lambda _, y: y.softmax(0),
    "cumsum over samples": lambda _, y: y.cumsum(0),
    "logcumsumexp": lambda _, y: y.logcumsumexp(0),
    "cumsum of a flat tensor": lambda _, y: y.reshape(-1).cumsum(0).view(-1, 6),
    "tril": lambda _, y: y.tril(),
    "triu": lambda _, y: y.triu(),
    "flip": lambda _, y: y.flip(0),
    "roll": lambda _, y: y.roll(1, 0),
    "rot90": lambda _, y: y.rot90(2, (0, 1)),
    "sort": lambda _, y: y.sort(0)[0],
    "index": lambda _, y: y[y[:, 0].argsort()],
    "index of channels by samples": lambda _, y: y[:, (y[:, 0] > 0).long()].mean(1, keepdim=True),
    "index_select": lambda _, y: y.index_select(0, y[:, 0].argsort()),
    "gather": lambda _, y: y.gather(0, y.argsort(0)),
    "take": lambda _, y: y.take(y.argsort(0)),
    "embedding": lambda _, y: functional.embedding(y.argsort(0)[:, 0], y),
    "scatter_add": lambda _, y: torch.zeros_like(y).scatter_add(0, y.argsort(0), y),
    "select_scatter": lambda s, y: torch.select_scatter(y, s.fixed, 0, 0),
    "gram": lambda _, y: (y @ y.t()).softmax(-1) @ y,
    "cdist": lambda _, y: torch.cdist(y, y) @ y,
    "pairs": lambda _, y: (y[:, None] - y[None]).relu().mean(1),
    "searchsorted": lambda _, y: torch.searchsorted(y[:, 0].sort()[0], y).to(y),
    "fft": lambda _, y: torch.fft.fft(y, dim=0).real,
    "renorm": lambda _, y: y.renorm(2, 1, 1.0),
    "shifted by padding": lambda _, y: functional.pad(y, (0, 0, 1, -1)),
    "pooled over samples": lambda _, y: functional.avg_pool1d(y.t(), 3, 1, 1).t(),
    "pooled over both": lambda _, y: functional.avg_pool2d(y[None], 3, 1, 1)[0],
    "attention over samples": lambda _, y: functional.scaled_dot_product_attention(y[None], y[None], y[None])[0],
    "scalars stacked": lambda s, y: y * torch.stack([s.one.view(())] * 6),
    "batch read as columns": lambda _, y: y.reshape(6, -1).softmax(0).t(),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_runs_member_by_member(name: str) -> None:
    net = assert_members_are_backbones(
        Body(MIXING[name], fixed=nn.Buffer(torch.zeros(6)), one=nn.Parameter(torch.ones(1)))
    )
    assert any("not fused" in note for note in net.report().notes)


ALIGNED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "softmax": lambda _, y: y.softmax(1),
    "normalised": lambda _, y: y / (y.norm(dim=1, keepdim=True) + 1),
    "cumsum": lambda _, y: y.cumsum(1),
    "sort": lambda _, y: y.sort(1)[0],
    "gather": lambda _, y: y.gather(1, y.argsort(1)),
    "tril of pairs": lambda _, y: (y[:, :, None] * y[:, None]).tril().mean(2),
    "transposed": lambda _, y: (y.t() * 2).t(),
    "views": lambda _, y: y.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6),
    "repeated samples": lambda _, y: y.repeat_interleave(2, 0).view(-1, 2, 6)[:, 1],
    "written to": lambda _, y: torch.select_scatter(y, y[:, 0] * 0, 1, 2),
    "stacked": lambda _, y: torch.stack([y, y * 2], 0).sum(0),
    "scaled": lambda s, y: y * s.scale + s.scalar,
    "rms norm without eps": lambda s, y: s.rms(y),
    "layer norm": lambda s, y: s.norm(y),
    "addmm": lambda s, y: torch.addmm(s.scale, y, s.matrix),
}


def with_parameters(function: Callable[..., Tensor]) -> Body:
    torch.manual_seed(1)
    return Body(
        function,
        scale=nn.Parameter(torch.randn(6)),
        scalar=nn.Parameter(torch.tensor(0.3)),
        matrix=nn.Parameter(torch.randn(6, 6)),
        rms=nn.RMSNorm(6),
        norm=nn.LayerNorm(6),
    )


@pytest.mark.parametrize("name", ALIGNED)
def test_what_treats_samples_alike_is_one_operation(name: str) -> None:
    net = assert_members_are_backbones(with_parameters(ALIGNED[name]))
    assert not any("not fused" in note for note in net.report().notes)


def test_members_of_tied_parameters_stay_tied() -> None:
    class Tied(Body):
        def __init__(self) -> None:
            super().__init__(lambda s, y: s.b(y.tanh()), b=nn.Linear(6, 6))
            self.get_submodule("b").weight = self.a.weight

    net = assert_members_are_backbones(Tied())
    assert net.get_parameter("a.weight") is net.get_parameter("b.weight")
    assert net.state_dict()["b.weight"].shape == (18, 6)


# The text of a fused program.


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, groups=2)
        self.bn, self.head = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.bn(self.mid(self.stem(x))).relu().mean((2, 3)))
        return result


BEFORE = """
stem = conv2d(x, stem_weight, stem_bias)  # [n, 4, 6, 6]
mid = conv2d(stem, mid_weight, mid_bias, [1, 1], [0, 0], [1, 1], 2)  # [n, 6, 4, 4]
bn = batch_norm(mid, bn_weight, bn_bias, bn_running_mean, bn_running_var, True, 0.1, 1e-05, False)  # [n, 6, 4, 4]
relu = relu(bn)  # [n, 6, 4, 4]
mean = mean.dim(relu, [2, 3])  # [n, 6]
head = linear(mean, head_weight, head_bias)  # [n, 5]
return head
"""

AFTER = """
stem = conv2d(x, stem_weight, stem_bias)  # [n, 4, 6, 6]
stem_repeated = repeat(stem, [1, 2, 1, 1])  # [n, 8, 6, 6]
mid_1 = conv2d(stem_repeated, mid_weight, mid_bias, [1, 1], [0, 0], [1, 1], 4)  # [n, 12, 4, 4]
bn_1 = batch_norm(mid_1, bn_weight, bn_bias, bn_running_mean, bn_running_var, True, 0.1, 1e-05, False)  # [n, 12, 4, 4]
relu_1 = relu(bn_1)  # [n, 12, 4, 4]
mean_1 = mean.dim(relu_1, [2, 3])  # [n, 12]
mean_batch_wide = unflatten.int(mean_1, 1, [2, 6])  # [n, 2, 6]
mean_batch_turned = transpose.int(mean_batch_wide, 0, 1)  # [2, n, 6]
mean_batch_flat = flatten.using_ints(mean_batch_turned, 0, 1)  # [2*n, 6]
mean_wide = unflatten.int(mean_batch_flat, 0, [2, -1])  # [2, n, 6]
head_weight_wide = unflatten.int(head_weight, 0, [2, 5])  # [2, 5, 6]
head_weight_turned = transpose.int(head_weight_wide, 1, 2)  # [2, 6, 5]
head_bias_wide = unflatten.int(head_bias, 0, [2, 5])  # [2, 5]
head_bias_more = unsqueeze(head_bias_wide, 1)  # [2, 1, 5]
head_product = baddbmm(head_bias_more, mean_wide, head_weight_turned)  # [2, n, 5]
head_flat = flatten.using_ints(head_product, 0, 1)  # [2*n, 5]
leaves_wide = unflatten.int(head_flat, 0, [2, -1])  # [2, n, 5]
mean_2_1 = mean.dim(leaves_wide, [0])  # [n, 5]
return mean_2_1
"""


def test_printed() -> None:
    captured = capture(Small(), torch.randn(2, 3, 8, 8))
    rewritten = HierarchicalEnsemble(splits=(("stem", 2),)).apply(captured, analyse(captured.program))
    assert captured.batch is not None

    def calls(program: Program) -> str:
        """A printed program without its inputs and tensors."""
        lines = str(program).replace(captured.batch or "", "n").splitlines()
        return "\n".join(line for line in lines if " = " not in line or "(" in line)

    assert calls(captured.program) == BEFORE.strip()
    assert calls(project(rewritten.program, [1])) == AFTER.strip()
