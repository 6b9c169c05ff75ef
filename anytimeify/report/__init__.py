"""What there is to know of an anytime model, or of a backbone before it becomes one, as tables.

`report(net)` gives a `Report`, `inspect(captured, axes)` an `Inspection`. Both print as tables that fit a screen, and
give everything as JSON and as Markdown. Shares are parts of the MACs of the full network.
"""

from anytimeify.report.backbone import BlockRow, Inspection, StageRow, inspect
from anytimeify.report.densities import Densities, DensityRow
from anytimeify.report.heads import HeadRow
from anytimeify.report.levels import LevelRow
from anytimeify.report.model import Report, report
from anytimeify.report.rows import AxisRow, Place

__all__ = [
    "AxisRow",
    "BlockRow",
    "Densities",
    "DensityRow",
    "HeadRow",
    "Inspection",
    "LevelRow",
    "Place",
    "Report",
    "StageRow",
    "inspect",
    "report",
]
