"""Where the parts of a picture of blocks stand: a row for each run of blocks, as many as fit, from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anytimeify.report.graph import BlockPicture, Width

__all__ = ["Bar", "Box", "Drawing", "draw"]

_LEFT, _WIDE, _HIGH, _GAP, _LINE, _PER_ROW = 90, 100, 64, 18, 112, 8


@dataclass(frozen=True)
class Bar:
    """What a level keeps of the channels of a block: a share of its width."""

    x: float
    y: float
    width: float
    level: int


@dataclass(frozen=True)
class Box:
    """A block, at its place. `shade`: from 0 to 1, its MACs over those of the dearest block."""

    number: int
    x: float
    y: float
    block: BlockPicture
    shade: float
    bars: tuple[Bar, ...]
    first: bool  # in its row
    opens: bool  # its stage

    @property
    def title(self) -> str:
        name = self.block.name
        return name if len(name) <= 15 else f"{name[:7]}…{name[-7:]}"


@dataclass(frozen=True)
class Drawing:
    """The boxes, and the size of all."""

    boxes: tuple[Box, ...]
    width: float
    height: float
    box: tuple[int, int] = (_WIDE, _HIGH)
    gap: int = _GAP


def draw(blocks: Sequence[BlockPicture], levels: int) -> Drawing:
    """Boxes in rows; a stage begins a new row."""
    boxes: list[Box] = []
    dearest = max((block.share for block in blocks), default=0.0) or 1.0
    row, column = -1, 0
    for number, block in enumerate(blocks):
        opens = not boxes or boxes[-1].block.stage != block.stage
        if opens or column == _PER_ROW:
            row, column = row + 1, 0
        x, y = _LEFT + column * (_WIDE + _GAP), 16 + row * _LINE
        bars = tuple(
            Bar(x + 8, y + _HIGH - 8 - 5 * (levels - level), (_WIDE - 16) * share, level)
            for level, share in enumerate(_kept(block.widths, levels))
        )
        boxes.append(Box(number, x, y, block, block.share / dearest, bars, column == 0, opens))
        column += 1
    return Drawing(tuple(boxes), _LEFT + _PER_ROW * (_WIDE + _GAP), 16 + (row + 1) * _LINE)


def _kept(widths: Sequence[Width], levels: int) -> list[float]:
    """What each level keeps of the channels that some level narrows, together; nothing where none does."""
    known = [width for width in widths if len(width.kept) == levels and None not in width.kept]
    narrowed = [width for width in known if any(count != width.channels for count in width.kept)]
    total = sum(width.channels for width in narrowed)
    return [sum(width.kept[level] or 0 for width in narrowed) / total for level in range(levels)] if total else []
