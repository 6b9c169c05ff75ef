"""Tables before anybody decided how they are shown: on a screen, or as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

__all__ = ["Table", "Tables", "in_bytes", "in_percent", "shortened"]

_LINES = 16  # of one table on the screen


@dataclass(frozen=True)
class Table:
    """One table. Columns whose title starts with `>` are aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def shown(self, lines: int) -> RenderableType:
        table = RichTable(box=None, pad_edge=False)
        for column in self.columns:
            right = column.startswith(">")
            table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
        for row in self.rows[:lines]:
            table.add_row(*map(Text, row))
        rest = len(self.rows) - lines
        more = [Text(f"... and {rest} more", "dim")] if rest > 0 else []
        title = [Text(self.title, "bold")] if self.title else []
        return Group(*title, table, *more, "")

    def markdown(self) -> str:
        heads = [column.removeprefix(">") for column in self.columns]
        rules = ["--:" if column.startswith(">") else "---" for column in self.columns]
        lines = [f"## {self.title}", "", *(_row(cells) for cells in (heads, rules, *self.rows))]
        return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


class Tables:
    """What prints as tables. Subclasses are dataclasses that give the title and the tables."""

    def title(self) -> str:
        """One line that says what this is about."""
        raise NotImplementedError

    def tables(self, *, everything: bool) -> Iterator[Table]:
        """The tables; where not everything is asked for, rows that are alike may be put together."""
        raise NotImplementedError

    def shown(self, *, everything: bool = False) -> RenderableType:
        """For `rich`: tables of at most a screen, or whole ones."""
        tables = [table for table in self.tables(everything=everything) if table.rows]
        lines = max((len(table.rows) for table in tables), default=0) if everything else _LINES
        return Group(Text(self.title(), "bold"), "", *(table.shown(lines) for table in tables))

    def __rich__(self) -> RenderableType:
        return self.shown()

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=120, color_system=None).print(self.shown())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip() + "\n"

    def to_markdown(self) -> str:
        """Everything, as a Markdown document."""
        tables = [table.markdown() for table in self.tables(everything=True) if table.rows]
        return "\n".join([f"# {self.title()}\n", *tables])

    def to_json(self) -> str:
        """Everything, as a JSON document whose keys are the fields."""
        return json.dumps(asdict(self), indent=2)  # type: ignore[call-overload]  # subclasses are dataclasses


def shortened(number: float) -> str:
    """1820000000 -> `1.82 G`."""
    if number < 1000:
        return f"{number:.0f}"
    for unit in ("k", "M", "G"):
        number /= 1000
        if number < 999.5:
            return f"{number:.3g} {unit}"
    return f"{number / 1000:.3g} T"


def in_bytes(number: float) -> str:
    """1572864 -> `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"


def in_percent(share: float) -> str:
    """0.075 -> `7.5 %`."""
    return f"{100 * share:.1f} %"
