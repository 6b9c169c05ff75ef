"""Which texts are arithmetic: those that torch writes, and none that do anything else or never end."""

from __future__ import annotations

import pytest

from anytimeify.capture.pt2.checks import RefusedError
from anytimeify.capture.pt2.expressions import guard, symbol, symbolic

S = "Symbol('s77', positive=True, integer=True)"


@pytest.mark.parametrize(
    "text",
    [
        S,
        "Symbol('u0', integer=True)",
        f"Add(Mul(Integer(8), {S}), Integer(-1))",
        f"FloorDiv(Add({S}, Integer(-1)), Integer(2))",
        f"Max(Integer(1), Mod(PowByNatural({S}, Integer(2)), Integer(7)))",
        f"Pow({S}, Rational(-1, 2))",
        "Float('0.69999999999999996', precision=53)",
        f"TruncToInt(FloatTrueDiv(ToFloat({S}), Float('2.0', precision=53)))",
        f"Equality(Mod({S}, Integer(2)), Integer(0))",
        f"And(StrictGreaterThan({S}, Integer(3)), Unequality({S}, Integer(5)))",
        "true",
        "s0 + 1",
        "4*s79",
        "-(s0//2)*s1**2 % 3",
        f"OpaqueUnaryFn_sqrt(ToFloat({S}))",
    ],
)
def test_sizes(text: str) -> None:
    symbolic(text, "size")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "__import__('os').system('true')",
            "().__class__",
            "s0.__class__",
            "[s0 for s0 in (1,)]",
            "lambda: 1",
            "eval('1')",
        ),
        *(
            "(s0 := 1)",
            "f'{s0}'",
            "s0 if s0 else open",
            "{1: 2}",
            "s0[0]",
            "'s0'",
            "Symbol('os')",
            "Symbol(s0)",
            "S('1')",
        ),
        *(
            "Symbol('s0', cls=Dummy)",
            "Symbol('s0', commutative=True)",
            "Symbol('s0', integer=1)",
            "Add(*s0)",
            "Add(**s0)",
        ),
        *(
            "Integer(10)**Integer(1000)",
            "2**10**9",
            "Pow(s0, s1)",
            "LShift(1, 1000000)",
            "FloatPow(s0, 1e9)",
            "9" * 3_000,
        ),
        *(
            "Pow(Pow(Pow(Integer(9), 64), 64), 64)",
            "Float('1e99999')",
            "Float('nan; import os')",
            "sympify('1')",
            "exec(s0)",
        ),
        *(
            "(" * 5_000,
            "-" * 5_000 + "1",
            "1\n+1",
            "",
            " ",
            "s0 +",
            "s0 in s1",
            "s0 is s1",
            "s0; s1",
            "s0 # 1",
            "math.inf + x",
        ),
        *(
            "s" + "0" * 20,
            "u123456",
            "Function('f')(1)",
            "Add(s0, print)",
            "True.real",
            "1 .__class__",
            "s0 @ s1",
            "~s0",
        ),
        "*".join(["(s0 + s1 + s2 + s3)"] * 12),
        " + ".join(["s0"] * 4_500),
    ],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^size: "):
        symbolic(text, "size")


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[0] == L['y']['k'].size()[1]",
        "((8*L['x'].size()[0]) // (L['x'].size()[0] // 2)) != 0",
        "L['flat_args'][0].stride()[1] <= 512",
        "L['x'].field.storage_offset() == 0",
        "max(1, L['n']) < math.inf and not (L['x'].size()[0] > 3)",
        "math.floor(0.7*torch.sym_float(L['x'].size()[2])) >= 2",
        "(1 if L['x'].size()[0] > 2 else 0) == 1",
    ],
)
def test_guards(text: str) -> None:
    guard(text, "guard")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "L['x'].tolist()",
            "L['x'].size(1)",
            "L['x'].size().x",
            "L['x'].size()[y]",
            "L['x'].__class__",
            "L['x']._private",
        ),
        *(
            "L.x",
            "x.size()[0] > 1",
            "L['x y'].size()[0] > 1",
            "torch.load('file')",
            "math.exp(1)",
            "open('file')",
            "s0 > 1",
        ),
        *(
            "L['x'].size()[0] > 1 #",
            "L['x'].size()[0] > 1\n",
            'L["x"].size()[0]',
            "L['x']['\\n']",
            "Symbol('s0')",
            "f(1)",
        ),
        *(
            "L['x'].apply_()",
            "L[__import__('os')]",
            "L['x'].size()[0]**10**9",
            "max(1, key=print)",
            "max(*L['x'])",
            "1, 2;",
        ),
    ],
)
def test_no_guards(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^guard: "):
        guard(text, "guard")


def test_names_of_symbols() -> None:
    for good in ("s0", "s77", "u3", "zf1", "zuf0"):
        symbol(good, "symbol")
    for bad in ("x", "s", "0", "s0 ", "u999999", "s٣", 7, None):
        with pytest.raises(RefusedError):
            symbol(bad, "symbol")
