"""How dense the weights of every level are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anytimeify.analysis.mask_density import masks
from anytimeify.ir import Program
from anytimeify.report.tables import Table, Tables, in_percent, shortened

__all__ = ["Densities", "DensityRow", "density_rows", "density_table"]


@dataclass(frozen=True)
class DensityRow:
    """One masked weight: how many elements it has, and how many of them each level keeps, cheapest first."""

    name: str
    entries: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Densities(Tables):
    """The masked weights of a model, in the order of the network."""

    scheme: str
    levels: tuple[str, ...]
    weights: tuple[DensityRow, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """How many elements every level keeps of all masked weights."""
        return tuple(sum(row.kept[level] for row in self.weights) for level in range(len(self.levels)))

    def title(self) -> str:
        return f"{self.scheme}: {len(self.weights)} masked weights"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        yield density_table(self.weights)


def density_rows(program: Program, levels: int) -> tuple[DensityRow, ...]:
    """Of a joint graph, as many elements as its tensors, the masks, keep now."""
    sizes: dict[str, int] = {}
    kept: dict[str, dict[int, int]] = {}
    for mask in masks(program):
        tensor = program.tensors[mask.name]
        sizes[mask.weight] = tensor.numel()
        kept.setdefault(mask.weight, {})[mask.level] = int(tensor.count_nonzero())
    return tuple(
        DensityRow(name, size, tuple(kept[name].get(level, size) for level in range(levels)))
        for name, size in sizes.items()
    )


def density_table(rows: Sequence[DensityRow]) -> Table:
    """The rows as a table, the sum of them first."""
    if not rows:
        return Table("Masked weights", (), ())
    levels = range(len(rows[0].kept))
    total = DensityRow("all", sum(row.entries for row in rows), tuple(sum(row.kept[k] for row in rows) for k in levels))
    return Table(
        f"Masked weights: {len(rows)}, by level the share that is kept",
        ("weight", ">entries", *(f">level {level}" for level in levels)),
        tuple(
            (row.name, shortened(row.entries), *(in_percent(kept / row.entries) for kept in row.kept))
            for row in (total, *rows)
        ),
    )
