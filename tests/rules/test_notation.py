"""The factor notation, without tensors."""

import pytest

from anytimeify.rules.notation import Compound, Dots, Name, NotationError, Single, parse


def test_convolution() -> None:
    notation = parse("n (g i) h w, (g o) i kh kw, (g o) -> n (g o) p q")
    assert notation.operands[1] == (Compound((Name("g"), Name("o"))), Name("i"), Name("kh"), Name("kw"))
    assert notation.positions == {"h", "w", "kh", "kw", "p", "q"}
    assert notation.contracted == {"i"}
    assert not notation.mixed


def test_dots_mixing_and_single() -> None:
    notation = parse("... 1 c~, c~ -> ... 1 c~")
    assert notation.operands[0] == (Dots(), Single(), Name("c", mixed=True))
    assert notation.mixed == {"c"}
    assert notation.positions == frozenset()


def test_several_results_and_scalars() -> None:
    assert len(parse("n c h -> n c p, n c p").results) == 2
    assert parse("i, i ->").results == ((),)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("n c", "exactly one '->'"),
        ("n (g i -> n", "unmatched '('"),
        ("n g) -> n", "unmatched ')'"),
        ("n () -> n", "empty '()'"),
        ("... n ... -> n", "'...' twice"),
        ("(... n) -> n", "'...' inside '()'"),
        ("n @ -> n", "cannot read '@'"),
        ("n + c -> n", "'+' outside"),
    ],
)
def test_malformed_lines_are_quoted(line: str, says: str) -> None:
    with pytest.raises(NotationError) as error:
        parse(line)
    assert says in str(error.value)
    assert f"'{line}'" in str(error.value)
