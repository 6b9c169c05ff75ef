"""What eval mode computes, and who writes to buffers in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, transform
from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.passes.rewrites.evaluate import evaluate
from tests.capture.helpers import text

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Centred(nn.Module):
    """Subtracts the mean of the batch in training, a moving one in eval mode, and counts its batches."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        mean = self.mean
        if self.training:
            mean = hidden.mean(0)
            self.count += 1
            self.mean.lerp_(mean.detach(), 0.1)
        result: Tensor = self.head((hidden - mean).relu())
        return result


def test_the_evaluation_form_has_nothing_of_training() -> None:
    program = capture(Centred(), X).program
    assert "by_mode(" in text(program)
    assert text(evaluate(program)).splitlines() == [
        "body = linear(x, body_weight, body_bias)",
        "sub = sub(body, mean)",
        "relu = relu(sub)",
        "head = linear(relu, head_weight, head_bias)",
        "return head",
    ]
    plain = evaluate(program)
    assert evaluate(plain) is plain


def test_a_program_and_its_evaluation_form_agree_in_eval_mode() -> None:
    model = Centred()
    model.mean.normal_()
    program = capture(model, X).program
    network, inference = to_modules(program).eval(), to_modules(program, training=False)
    torch.testing.assert_close(network(X)[0], inference(X)[0], rtol=0, atol=0)
    assert not any("anytimeify" in type(module).__module__ for module in inference.modules())
    assert torch.equal(network(X)[0], model.eval()(X))


def steps(net: AnytimeModel, model: Centred) -> None:
    for scale in (1, 2, 3):
        torch.testing.assert_close(net.train()(X * scale).levels[net.full], model.train()(X * scale))


def test_the_backbones_own_level_writes() -> None:
    """All levels of a joint pass share the buffers; only one has the channels of the backbone."""
    for scheme in ("nested-channels{widths=0.25,0.5,1}", "nested-weights{densities=0.5,1}"):
        model = Centred()
        net = transform(model, scheme, X)
        steps(net, model)
        torch.testing.assert_close(net.get_buffer("mean"), model.mean, msg=scheme)
        assert int(net.get_buffer("count")) == 3


def test_members_write_to_their_own() -> None:
    model = Centred()
    net = transform(model, "hierarchical-ensemble{depth=1 cuts=body}", X)
    steps(net, model)
    means = [buffer for name, buffer in net.named_buffers() if "mean" in name]
    whole = torch.cat([mean.flatten() for mean in means])
    torch.testing.assert_close(whole[:8], model.mean)
    assert bool(whole.any())
