"""Schemes as text, and how they are found."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytimeify.errors import SchemeError
from anytimeify.passes.scheme import Scheme, _read, _write, parse_scheme, schemes
from anytimeify.passes.schemes.hierarchical_ensemble import HierarchicalEnsemble
from anytimeify.passes.schemes.nested_channels import NestedChannels


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
        NestedChannels(widths=(0.5, 1.0), where="1.10"),
        NestedChannels(widths=(0.5, 1.0), where=("1", "true", "none")),
        HierarchicalEnsemble(cuts=("1.10", "1e5", "true", "layer1")),
        HierarchicalEnsemble(cuts=("1.10",)),
        HierarchicalEnsemble(cuts=("0", "1_0", "inf", "none", "None", "-1", "1.")),
        HierarchicalEnsemble(splits=(("1.10", 2),)),
        HierarchicalEnsemble(splits=(("1.10", 2), ("1e5", 3), ("true", 2), ("layer1", 16)), fuse=False, sizes="all"),
    ],
    ids=str,
)
def test_spec_strings_round_trip(scheme: Scheme) -> None:
    assert parse_scheme(str(scheme)) == scheme


layers = st.text("019.eE_-+xXaionftru*?[]", min_size=1)


@given(st.lists(layers, max_size=4), st.lists(st.tuples(layers, st.integers(2, 6)), max_size=3))
def test_names_of_layers_round_trip(cuts: list[str], splits: list[tuple[str, int]]) -> None:
    for scheme in (HierarchicalEnsemble(cuts=tuple(cuts)), HierarchicalEnsemble(splits=tuple(splits))):
        assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ((("blocks.2", 16),), tuple[tuple[str, int], ...]),
        ((("1.10", 2), ("1", 3)), tuple[tuple[str, int], ...]),
        (((("2", 1),), 2), tuple[tuple[tuple[str, int], ...], int]),
        (("a",), tuple[str, ...]),
        ((), tuple[str, ...]),
        ((1, 2.5), tuple[float, ...]),
        ("2", str | None),
        (None, str | None),
        (None, int | None),
        (2, int | None),
        (True, bool),
        ("true", Literal["true", "none"]),
        (2, Literal[1, 2]),
        ((1, True, "word"), Any),
    ],
)
def test_values_round_trip(value: object, kind: Any) -> None:
    found = _read(_write(value), kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("spec", "scheme"),
    [
        ("cuts=1.10", HierarchicalEnsemble(cuts=("1.10",))),
        ("cuts=1.10,true", HierarchicalEnsemble(cuts=("1.10", "true"))),
        ("splits=1.10,2", HierarchicalEnsemble(splits=(("1.10", 2),))),
        (
            "splits=(1.10,2),(layer2,3) fuse=false",
            HierarchicalEnsemble(splits=(("1.10", 2), ("layer2", 3)), fuse=False),
        ),
    ],
)
def test_outer_brackets_may_be_left_out(spec: str, scheme: HierarchicalEnsemble) -> None:
    assert parse_scheme(f"hierarchical-ensemble{{{spec}}}") == scheme


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
        ("nested", "'nested' is not a scheme; there are: "),
        ("nested-channels{width=0.5,1}", "no field 'width'; it has: widths, where"),
        ("nested-channels{0.5,1}", "expected field=value"),
        ("nested-channels{widths=0.5,1 widths=1}", "given twice"),
        ("nested-channels{widths=0.5,1", "is not a scheme"),
        ("nested-channels{widths=0.5,0.25,1}", "expected increasing numbers"),
        ("nested-channels{widths=0.25,0.5}", "the last one 1"),
        ("nested-channels{widths=0,1}", "0 is not a number in (0, 1]"),
        ("nested-channels{widths=0.5,2}", "2 is not a number in (0, 1]"),
        ("nested-channels{widths=half,1}", "'half' is not a number"),
        ("nested-channels{norms=none}", "norms='none': expected private or shared"),
        ("nested-channels{multiple_of=0}", "expected a whole number, 1 or more"),
        ("hierarchical-ensemble{splits=layer1}", "is not a pair of a layer and a number"),
        ("hierarchical-ensemble{splits=(layer1,2,3)}", "is not a pair of a layer and a number"),
        ("hierarchical-ensemble{splits=(2,layer1)}", "is not a pair of a layer and a number"),
        ("hierarchical-ensemble{depth=two}", "depth='two': expected a whole number"),
        ("hierarchical-ensemble{fuse=3}", "fuse=3: expected true or false"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(SchemeError) as error:
        parse_scheme(text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "text", ["hierarchical-ensemble{splits=" + "(" * 5000 + ")" * 5000 + "}", "nested-depth{depths=((}"]
)
def test_what_nobody_thought_of_is_a_scheme_error(text: str) -> None:
    with pytest.raises(SchemeError):
        parse_scheme(text)


@pytest.mark.parametrize("text", ["depth=1000000", "splits=((stem,1000000000),)", f"cuts={','.join('abcdefghi')}"])
def test_ensembles_are_not_of_any_size(text: str) -> None:
    with pytest.raises(SchemeError, match="more than 256 leaves"):
        parse_scheme(f"hierarchical-ensemble{{{text}}}")
