"""What an anytime model was made of, without a second copy of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Size, Tensor, fx, nn

from anytimeify.axes import Axes
from anytimeify.calling import Calling
from anytimeify.cost import cost, sizes
from anytimeify.ir import Captured, Level, Program, Rewritten
from anytimeify.kept import recount
from anytimeify.lift import backbone_name
from anytimeify.passes.evaluate import evaluate
from anytimeify.passes.options import Options
from anytimeify.passes.project import project
from anytimeify.rewriter import Scheme
from anytimeify.stacks import first_member

__all__ = ["Definition", "freeze_unread", "register_missing"]


@dataclass(frozen=True)
class Definition:
    """The backbone, the scheme and the joint graph. Tensors that the model owns have no data here, so that nothing is
    kept alive when the model moves to another device or type; `captured_with` and `rewritten_with` fill them in."""

    captured: Captured
    axes: Axes
    scheme: Scheme
    rewritten: Rewritten
    calling: Calling
    levels: tuple[Level, ...]
    options: Options

    @staticmethod
    def of(
        captured: Captured,
        axes: Axes,
        scheme: Scheme,
        rewritten: Rewritten,
        *,
        owned: Mapping[str, Tensor],
        options: Options | None = None,
    ) -> Definition:
        """`owned`: the tensors of the model, by name."""
        return Definition(
            replace(captured, program=_without_data(captured.program, owned), fresh=None),
            axes,
            scheme,
            replace(rewritten, program=_without_data(rewritten.program, owned)),
            Calling.of(captured),
            _levels(captured, rewritten),
            options or Options(),
        )

    def stacked(self) -> Mapping[str, Size]:
        """The backbone's shapes of the tensors that hold those of several members."""
        return {name: self.captured.program.tensors[name].shape for name in self.rewritten.stacks}

    def captured_with(self, tensors: Mapping[str, Tensor]) -> Captured:
        shapes = {name: tensor.shape for name, tensor in self.captured.program.tensors.items()}
        parts: dict[int, Tensor] = {}  # tied stacks have tied parts
        own = {
            name: parts.setdefault(id(tensor), first_member(tensor, shapes[name]))
            if name in self.rewritten.stacks
            else tensor
            for name, tensor in tensors.items()
            if name in shapes
        }
        return replace(self.captured, program=_with(self.captured.program, own))

    def rewritten_with(self, tensors: Mapping[str, Tensor]) -> Rewritten:
        return replace(self.rewritten, program=_with(self.rewritten.program, tensors))

    def recounted(self, tensors: Mapping[str, Tensor]) -> Definition:
        """The same with the costs that levels have by the masks among `tensors`."""
        program = recount(self.rewritten.program, tensors)
        if program is self.rewritten.program:
            return self
        rewritten = replace(self.rewritten, program=program)
        return replace(self, rewritten=rewritten, levels=_levels(self.captured, rewritten))

    def __deepcopy__(self, memo: dict[int, Any]) -> Definition:
        return self  # never changed


def _levels(captured: Captured, rewritten: Rewritten) -> tuple[Level, ...]:
    batch_size, symbols = sizes(captured)
    return tuple(
        Level(
            index,
            name,
            cost(
                evaluate(project(rewritten.program, [rewritten.position(index)])), captured.batch, batch_size, symbols
            ),
            index in rewritten.training_only,
        )
        for index, name in enumerate(rewritten.level_names)
    )


def register_missing(network: fx.GraphModule, program: Program) -> None:
    """Registers tensors of the backbone that the rewritten program lost, so that state dicts stay whole."""
    renamed = network.meta.get("renamed", {})
    known = {backbone_name(name, renamed) for name, _ in network.named_parameters(remove_duplicate=False)}
    known |= {backbone_name(name, renamed) for name, _ in network.named_buffers(remove_duplicate=False)}
    for name, tensor in program.tensors.items():
        if name in known:
            continue
        *path, last = name.split(".")
        owner: nn.Module = network
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]  # a module, never None
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor, persistent=name not in program.transient)


def freeze_unread(program: Program) -> None:
    """Parameters that no level reads (an auxiliary head that was dropped) are kept for checkpoints. Nothing ever gives
    them a gradient, which DistributedDataParallel refuses, so they ask for none."""
    read = {id(program.tensors[str(node.target)]) for node in program.graph.find_nodes(op="get_attr") if node.users}
    for tensor in program.tensors.values():
        if isinstance(tensor, nn.Parameter) and id(tensor) not in read:
            tensor.requires_grad_(False)


def _without_data(program: Program, owned: Mapping[str, Tensor]) -> Program:
    """The same program holding no memory for what the model itself holds."""
    shells: dict[int, Tensor] = {}
    tensors = {}
    for name, tensor in program.tensors.items():
        if name in owned:
            shell = shells.setdefault(id(tensor), tensor.detach().to("meta"))
            if isinstance(tensor, nn.Parameter) and not isinstance(shell, nn.Parameter):
                shell = shells[id(tensor)] = nn.Parameter(shell, requires_grad=tensor.requires_grad)
            tensors[name] = shell
        else:
            tensors[name] = tensor
    return replace(program, tensors=tensors)


def _with(program: Program, owned: Mapping[str, Tensor]) -> Program:
    return replace(program, tensors={name: owned.get(name, tensor) for name, tensor in program.tensors.items()})
