"""Every row of the table against the reference tests of ONNX, which the package `onnx` holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from anytimeify.capture import resolve
from anytimeify.capture.sources.onnx.read import OPSETS
from anytimeify.capture.sources.onnx.table import FAMILIES, Row, rows, rows_by_operator
from benchmarks.onnx_sources.page import operators
from tests.capture.onnx.models import network, results
from tests.source_files import ROOT

OURS = {"Linear", "Recurrent", "GruResetFirst", "ReshapeBatch", "ExpandBatch", "ExpandTo"}  # in no file
# What the reference tests try and is refused, or is not what onnxruntime does.
REFUSED = (
    *("training", "_dilations", "with_peepholes", "with_argmax", "tf_crop_and_resize", "antialias", "not_larger"),
    *("not_smaller", "test_scatternd_m", "_seq", "_opt", "empty_set", "spacetodepth_", "test_cast", "_string"),
    "test_scan_sum",  # of version 8, where a Scan had a batch
    "_expanded",  # an operator as others, for which that test is there
    "scales_linear_align_corners",  # onnxruntime divides by the size that it rounds to, the reference by the exact one
    "scales_cubic_align_corners",
    "l2normalization_axis_0",  # zeros by zeros are no numbers before version 22
    "bfloat16",  # numpy has none
    *("uint16", "uint32", "uint64", "bitwise_not_3d"),  # nor has torch arithmetic of these
)
ROUNDED = ("averagepool_2d_ceil_last_window", "gridsample_bicubic")  # expected values of five digits


@cache
def cases() -> dict[str, Any]:
    """Tests of one operator that has a row, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [case for case in collect_testcases(None) if case.kind == "node"]
    return {case.name: case for case in found if _is_tried(case)}


def _is_tried(case: Any) -> bool:
    if case.model.functions:
        return False
    operators = {(node.domain, node.op_type) for node in case.model.graph.node}
    known = all(not domain and name in rows_by_operator() for domain, name in operators)
    arrays = all(isinstance(one, np.ndarray | np.generic) for part in case.data_sets[0] for one in part)
    return known and arrays and not any(text in case.name for text in REFUSED)


def _opset(case: Any) -> int:
    """The version of a test, or the nearest one that is read."""
    own: int = max(one.version for one in case.model.opset_import if not one.domain)
    return min(max(own, OPSETS[0]), OPSETS[-1])


def _numbers(model: Any, opset: int) -> Iterator[str]:
    """Inputs that have to be known: they become tensors of the graph."""
    for node in model.graph.node:
        row = next(row for row in rows_by_operator()[node.op_type] if row.since <= opset)
        yield from (name for place, name in enumerate(node.input) if place in row.numbers)
        known = {"If": [0], "Loop": [0, 1], "LSTM": [1, 2, 3, 4, 7], "GRU": [1, 2, 3, 4], "RNN": [1, 2, 3, 4]}
        yield from (name for place, name in enumerate(node.input) if place in known.get(node.op_type, ()))


def _check(case: Any, folder: Path) -> None:
    opset = _opset(case)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for one in model.opset_import:
        one.version = opset if not one.domain else one.version
    numbers, feed = set(_numbers(model, opset)), []
    for one, value in zip(model.graph.input, case.data_sets[0][0], strict=True):
        if one.name in numbers:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), one.name))
        else:
            feed.append(torch.tensor(np.array(value)))
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    source = resolve(file)
    source.model.batch = None  # type: ignore[union-attr]  # weights are inputs here
    with torch.no_grad():
        found = results(network(source)(*feed))
    tolerance = 1e-3 if any(text in case.name for text in ROUNDED) else 1e-5
    for one, expected in zip(found, case.data_sets[0][1], strict=True):
        assert tuple(one.shape) == np.shape(expected)
        np.testing.assert_allclose(one.detach().numpy(), expected, rtol=max(tolerance, 1e-4), atol=tolerance)


def test_operators_compute_what_the_reference_says(tmp_path: Path) -> None:
    wrong, tried = [], set[str]()
    for name, case in cases().items():
        try:
            _check(case, tmp_path)
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        tried.update(node.op_type for node in case.model.graph.node)
    assert not wrong, "\n".join(wrong)
    untried = rows_by_operator().keys() - tried - OURS
    assert untried == {"Cast", "CastLike", "GlobalLpPool"}  # see test_onnx.py


UNREAD = {"Constant": {"sparse_value", "value_string", "value_strings"}}  # refused, as attributes of no row


@pytest.mark.parametrize("opset", OPSETS)
def test_rows_know_the_attributes_of_every_version(opset: int) -> None:
    for name, own in rows_by_operator().items():
        if name in OURS or not onnx.defs.has(name, opset, ""):
            continue
        row = next((row for row in own if row.since <= opset), None)
        assert row is not None, name
        schema = onnx.defs.get_schema(name, opset, "")
        assert schema.attributes.keys() - row.keywords <= UNREAD.get(name, set()), name


def test_rows_are_sorted_into_families() -> None:
    found: list[tuple[str, Row]] = list(rows())
    assert {family for family, _ in found} == set(FAMILIES)
    assert len({(row.operator, row.since) for _, row in found}) == len(found)


def test_the_page_lists_the_operators() -> None:
    page = (ROOT / "docs" / "onnx.md").read_text()
    assert operators() in page
