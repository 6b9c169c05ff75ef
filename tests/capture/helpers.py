"""What every captured backbone must satisfy, in one place."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify._torch import flatten, unflatten
from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.ir import Captured, Program


def prediction(model: nn.Module, captured: Captured) -> Tensor:
    """The backbone's prediction on the captured example inputs."""
    leaves = list(captured.example_inputs)
    for position, value in captured.signature.constants:
        leaves.insert(position, value)
    args, kwargs = unflatten(leaves, captured.signature.in_spec)
    result = flatten(model(*args, **kwargs))[0][captured.signature.prediction]
    assert isinstance(result, Tensor)
    return result


def randomise_statistics(model: nn.Module) -> nn.Module:
    """Norm statistics as after some training: the initial ones would hide a swap of mean and variance."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return model


def check(model: nn.Module, inputs: Any = None, *, training: bool = True, **options: Any) -> Captured:
    """Captures, turns into modules, compares with the backbone: eval mode, inference form, one step of training, state
    dict."""
    randomise_statistics(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    captured = capture(model, inputs, **options)
    assert flags == [module.training for module in model.modules()]
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not {id(tensor) for tensor in [*model.parameters(), *model.buffers()]} & set(
        map(id, captured.program.tensors.values())
    )

    network = to_modules(captured.program)
    state = network.state_dict()
    assert set(state) == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    assert_same_in_eval_mode(model, captured)
    if training:
        assert_same_step(model, network, captured)
    return captured


def assert_same_in_eval_mode(model: nn.Module, captured: Captured) -> None:
    network, inference = to_modules(captured.program).eval(), to_modules(captured.program, training=False)
    assert "anytimeify" not in inference.code
    assert not any(module.training for module in inference.modules())
    model.eval()
    with torch.no_grad():
        expected = prediction(model, captured)
        torch.testing.assert_close(network(*captured.example_inputs)[0], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(inference(*captured.example_inputs)[0], expected, rtol=1e-5, atol=1e-6)


def assert_same_step(model: nn.Module, network: nn.Module, captured: Captured) -> None:
    """Outputs, gradients and running statistics of one step in train mode, from the same random numbers."""
    model.train()
    network.train()
    torch.manual_seed(0)
    expected = prediction(model, captured)
    if expected.requires_grad:
        expected.square().mean().backward()
    torch.manual_seed(0)
    (result,) = network(*captured.example_inputs)
    assert result.requires_grad == expected.requires_grad
    if result.requires_grad:
        result.square().mean().backward()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    ours = captured.program.tensors
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.grad is not None and ours[name].requires_grad:
            torch.testing.assert_close(
                ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=partial(labelled, name)
            )
    state = network.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6, msg=partial(labelled, name))


def labelled(name: str, message: str) -> str:
    return f"{name}: {message}"


def text(program: Program) -> str:
    """The graph as a short listing: one call a line, tensors and inputs left out."""
    lines = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            name = getattr(node.target, "_opname", getattr(node.target, "__name__", node.target))
            args = [*map(str, node.args), *(f"{key}={value}" for key, value in node.kwargs.items())]
            lines.append(f"{node.name} = {name}({', '.join(args)})")
    return "\n".join([*lines, f"return {', '.join(node.name for node in program.outputs)}"])
