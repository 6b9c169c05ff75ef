"""Schemes as text, and how they are found."""

import pytest

from anytimeify.errors import SchemeError
from anytimeify.passes.nested_channels import NestedChannels
from anytimeify.rewriter import _read, _write, parse_scheme, schemes


def test_schemes_are_found_by_being_there() -> None:
    assert schemes()["nested-channels"] is NestedChannels


@pytest.mark.parametrize(
    "scheme",
    [
        NestedChannels(),
        NestedChannels(widths=(1.0,)),
        NestedChannels(widths=(0.25, 0.5, 1.0), norms="shared", heads="shared", order="l1", multiple_of=8),
        NestedChannels(widths=(1 / 3, 1.0), where="inner"),
        NestedChannels(widths=(0.5, 1.0), where=("blocks.*.mlp", "head*")),
        NestedChannels(widths=(0.5, 1.0), where=("blocks.*",)),
    ],
)
def test_spec_strings_round_trip(scheme: NestedChannels) -> None:
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize("value", [(("blocks.2", 16),), (("a", 2), ("b", 3)), ((("x", 1),), 2), ("a",), ()])
def test_nested_values_round_trip(value: object) -> None:
    assert _read(_write(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "nested-channels{widths=0.25,0.5,1}",
        "nested-channels{widths=(0.25, 0.5, 1)}",
        " nested-channels { widths=0.25,0.5,1, norms=private } ",
    ],
)
def test_spellings(text: str) -> None:
    assert parse_scheme(text) == NestedChannels(widths=(0.25, 0.5, 1.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a scheme"),
        ("nested", "'nested' is not a scheme; there are: hierarchical-ensemble, nested-channels"),
        ("nested-channels{width=0.5,1}", "no field 'width'; it has: widths, where"),
        ("nested-channels{0.5,1}", "expected field=value"),
        ("nested-channels{widths=0.5,1 widths=1}", "given twice"),
        ("nested-channels{widths=0.5,1", "is not a scheme"),
        ("nested-channels{widths=0.5,0.25,1}", "expected increasing numbers"),
        ("nested-channels{widths=0.25,0.5}", "the last one 1"),
        ("nested-channels{widths=0,1}", "0 is not a number in (0, 1]"),
        ("nested-channels{widths=0.5,2}", "2 is not a number in (0, 1]"),
        ("nested-channels{widths=half,1}", "'half' is not a number"),
        ("nested-channels{norms=none}", "norms=None: expected private or shared"),
        ("nested-channels{multiple_of=0}", "expected a whole number, 1 or more"),
        ("nested-channels{connectivity=triangular}", "not available yet"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(SchemeError) as error:
        parse_scheme(text)
    assert says in str(error.value)
