"""What an anytime model was made of, without a second copy of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Size, Tensor, nn

from anytimeify.analysis.axes import Axes, analyse
from anytimeify.codegen.stacked_parameters import first_member
from anytimeify.errors import ArgumentError
from anytimeify.ir import Captured, Program
from anytimeify.ir.recast import recast
from anytimeify.ir.rewritten import Rewritten, Role
from anytimeify.passes.options import Options
from anytimeify.passes.scheme import Scheme
from anytimeify.taxonomy import ReadsGranularities

__all__ = ["Definition"]


@dataclass(frozen=True)
class Definition:
    """The backbone, the scheme and the joint graph. Tensors that the model owns have no data here, so that nothing is
    kept alive when the model moves to another device or type; `captured_with` and `rewritten_with` fill them in."""

    captured: Captured
    axes: Axes
    scheme: Scheme
    rewritten: Rewritten
    options: Options

    @staticmethod
    def of(
        captured: Captured,
        axes: Axes,
        scheme: Scheme,
        rewritten: Rewritten,
        options: Options,
        *,
        owned: Mapping[str, Tensor],
    ) -> Definition:
        """`owned`: the tensors of the model, by name."""
        return Definition(
            replace(captured, program=_without_data(captured.program, owned), reinitialised=None),
            axes,
            scheme,
            replace(rewritten, program=_without_data(rewritten.program, owned)),
            options,
        )

    # Its tensors.

    def stacked(self) -> Mapping[str, Size]:
        """The backbone's shapes of the tensors that hold those of several members."""
        return {name: self.captured.program.tensors[name].shape for name in self.rewritten.stacked_parameters}

    def captured_with(self, tensors: Mapping[str, Tensor]) -> Captured:
        """The backbone as `axes` know it: where tensors have been cast, types say the precision before."""
        shapes = {name: tensor.shape for name, tensor in self.captured.program.tensors.items()}
        parts: dict[int, Tensor] = {}  # tied stacks have tied parts
        own = {
            name: parts.setdefault(id(tensor), first_member(tensor, shapes[name]))
            if name in self.rewritten.stacked_parameters
            else tensor
            for name, tensor in tensors.items()
            if name in shapes
        }
        return replace(self.captured, program=_with(self.captured.program, own))

    def recast_with(self, captured: Captured) -> tuple[Captured, Axes]:
        """A backbone of `captured_with` and its axes, for a scheme: in the precision of its tensors."""
        program = recast(captured.program)
        if program is captured.program:
            return captured, self.axes
        return replace(captured, program=program), analyse(program)

    def rewritten_with(self, tensors: Mapping[str, Tensor]) -> Rewritten:
        return replace(self.rewritten, program=recast(_with(self.rewritten.program, tensors)))

    # Its granularities, by name.

    @property
    def granularities(self) -> tuple[tuple[str, ...], ...]:
        """Which every level predicts, finest first; empty without a taxonomy."""
        if self.options.taxonomy is None:
            return ()
        return tuple(self._named("level", level) for level in range(len(self.rewritten.levels)))

    @property
    def served(self) -> tuple[str, ...]:
        """Which every level serves; empty without a taxonomy."""
        names = self.options.taxonomy.granularities if self.options.taxonomy is not None else ()
        return tuple(names[level.served] for level in self.rewritten.levels if level.served is not None)

    def granularity(self, level: int, given: int | str | None) -> int | None:
        """One that a level has, as a user gives it; None for the one that it serves. Raises `ArgumentError` for others
        and without a taxonomy."""
        taxonomy = self.options.taxonomy
        if given is None:
            return None
        if taxonomy is None:
            raise ArgumentError(f"granularity={given!r}: this model has no taxonomy")
        place = taxonomy.index(given)
        own = self._named("level", level)
        if taxonomy.granularities[place] not in own:
            name = self.rewritten.levels[level].name
            raise ArgumentError(
                f"level {level} ({name}) does not predict {taxonomy.granularities[place]}; it predicts {', '.join(own)}"
            )
        return place

    def default_loss(self) -> nn.Module:
        """The objective that belongs to the scheme and its options."""
        return self.options.default_loss(self.scheme)

    def tell(self, loss: nn.Module) -> None:
        """Tells an objective for several granularities which ones levels and members have."""
        taxonomy, rewritten = self.options.taxonomy, self.rewritten
        if taxonomy is None:
            return
        count = sum(not level.consensus for level in rewritten.levels)  # the consensus has an objective of its own
        levels = [rewritten.granularities("level", level) for level in range(count)]
        members = [rewritten.granularities(*member) for member in rewritten.members]
        for module in loss.modules():
            if isinstance(module, ReadsGranularities):
                module.bind(taxonomy, levels, members)

    def _named(self, role: Role, index: int) -> tuple[str, ...]:
        names = self.options.taxonomy.granularities if self.options.taxonomy is not None else ()
        return tuple(names[place] for place in self.rewritten.granularities(role, index))

    def __deepcopy__(self, memo: dict[int, Any]) -> Definition:
        return self  # never changed


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
