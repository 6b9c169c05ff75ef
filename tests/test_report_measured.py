"""Levels that cost more and give less are marked, in tables, in JSON and in pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from anytimeify import ArgumentValueError, ArtifactError, Cost, Level
from anytimeify.measure.timing import Timing
from anytimeify.report.costs import cost_rows, cost_table, plot_costs
from anytimeify.report.measured import Measured, MeasuredRow, judged
from anytimeify.report.pareto import dominated_by
from anytimeify.report.tables import Table
from anytimeify.runtime.evaluation import Accuracies, AccuracyRow, read_scores

LEVELS = [
    *(
        Level(place, name, Cost(macs, 10, 4))
        for place, (name, macs) in enumerate([("a", 1000), ("b", 2000), ("c", 3000)])
    ),
    Level(3, "wide", Cost(9000, 90, 4), training_only=True),
]


@pytest.mark.parametrize(
    ("costs", "gains", "found"),
    [
        ([1, 2, 3], None, [None, None, None]),
        ([3, 2, 4], None, [1, None, None]),
        ([3, 3, 1], None, [2, 2, None]),
        ([1, 2, 3], [0.5, 0.8, 0.7], [None, None, 1]),
        ([1, 1], [0.5, 0.5], [None, None]),
        ([1, 1], [0.4, 0.5], [1, None]),
        ([2, 1, 1], [0.5, 0.5, 0.6], [2, 2, None]),
        ([], None, []),
    ],
)
def test_dominated(costs: list[float], gains: list[float] | None, found: list[int | None]) -> None:
    assert dominated_by(costs, gains) == found


def test_costs_with_marks(tmp_path: Path) -> None:
    rows = cost_rows(LEVELS, {0: 5.0, 1: 4.0, 2: 9.0, 3: 1.0}, None)
    assert [row.dominated_by for row in rows] == ["b", None, None, None]
    table = cost_table(rows)
    assert table.columns == (">level", "name", ">MACs", ">parameters", ">activation bytes", ">latency, ms", "")
    assert table.rows[0] == ("0", "a", "1,000", "10", "4", "5.000", "costs more and gives less than b")
    assert table.rows[3][1] == "wide, training only"
    plain = cost_table(cost_rows(LEVELS, {}, None))
    assert plain.columns == (">level", "name", ">MACs", ">parameters", ">activation bytes")
    scored = cost_rows(LEVELS, {}, {"a": 0.9, "c": 0.8})
    assert [row.dominated_by for row in scored] == [None, None, "a", None]
    assert scored[2].known()["accuracy"] == 0.8
    assert "latency_ms" not in scored[2].known()
    with pytest.raises(ArgumentValueError, match="'d' is not the name of a level; there are: a, b, c, wide"):
        cost_rows(LEVELS, {}, {"d": 1})
    for name, drawn in (("one.svg", rows), ("two.svg", scored)):
        plot_costs(tmp_path / name, drawn)
        assert (tmp_path / name).stat().st_size > 1000


def measured(accuracies: dict[str, float] | None, *, alone: bool = True) -> Measured:
    timings = [Timing(2.0, 3.0, 10), Timing(4.0, 5.0, 10), Timing(123.4, 140.0, 10)]
    rows = [
        MeasuredRow(place, name, 1000 * (place + 1), size, timing, Timing(2.0, 2.0, 10) if alone else None)
        for size in (1, 4)
        for place, (name, timing) in enumerate(zip("abc", timings, strict=True))
    ]
    return Measured("net.onnx", "a-scheme", "torch 2", "a processor", 1, judged(rows, accuracies))


def test_what_was_measured(tmp_path: Path) -> None:
    found = measured({"a": 0.5, "b": 0.9, "c": 0.8})
    assert [row.dominated_by for row in found.rows] == [None, None, "b"] * 2
    (table,) = found.tables(everything=True)
    assert isinstance(table, Table)
    assert table.columns[-4:] == (">alone, ms", ">ratio", ">accuracy", "")
    assert table.rows[2][3:] == ("1", "123", "140", "10", "2", "61.70", "80.0 %", "costs more and gives less than b")
    (plain,) = measured(None, alone=False).tables(everything=True)
    assert plain.columns[-3:] == (">p99, ms", ">runs", "")
    assert '"median_ms": 123.4' in found.to_json()
    for name, one in (("one.png", found), ("two.png", measured(None))):
        one.plot(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentValueError, match="'d' is not the name of a level"):
        measured({"d": 0.5})


def test_accuracies_in_files(tmp_path: Path) -> None:
    rows = [
        AccuracyRow(0, "a", one, head, value) for one, head, value in [("fine", "fine", 0.5), ("coarse", "fine", 0.7)]
    ]
    accuracies = Accuracies((*rows, AccuracyRow(1, "b", "coarse", "coarse", 0.9)), 10)
    assert accuracies.scores() == {"a": 0.5, "b": 0.9}
    file = tmp_path / "accuracies.json"
    file.write_text(accuracies.to_json())
    assert read_scores(file) == {"a": 0.5, "b": 0.9}
    file.write_text('{"a": 1, "b": 0.25}')
    assert read_scores(file) == {"a": 1.0, "b": 0.25}
    for text in ("[1]", "{", '{"a": 81.5}', '{"a": "x"}', '{"rows": [{}]}'):
        file.write_text(text)
        with pytest.raises(ArtifactError, match=r"accuracies\.json"):
            read_scores(file)
