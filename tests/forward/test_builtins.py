"""The program's arithmetic over sizes is Python's."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from torchgil._build import C
from torchgil.forward.builtins import BUILTINS, FUNCTIONS

INTS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = INTS | st.integers(-9, 9) | st.floats(allow_nan=False) | st.booleans()

BINARY: list[Callable[[Any, Any], Any]] = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    torch.sym_min, torch.sym_max,
]  # fmt: skip
UNARY: list[Callable[[Any], Any]] = [
    operator.neg, operator.pos, operator.abs, operator.not_, math.ceil, math.floor, math.trunc, round, int,
    float, bool,
]  # fmt: skip


def compute(function: Callable[..., Any], *operands: Any) -> Any:
    """The builtin's result, out of a program of one instruction."""
    graph = C.Graph()
    encoded = [
        ("list", [("constant", v) for v in o]) if isinstance(o, list) else ("constant", o) for o in operands
    ]
    graph.set_code(
        [
            {
                "name": "node",
                "where": "",
                "op": BUILTINS[function],
                "overload": None,
                "operands": encoded,
                "outputs": (0,),
                "unpack": False,
                "unsafe_writes": (),
            }
        ]
    )
    graph.set_outputs([("last", 0)])
    (result,) = graph.run([])
    return result


def assert_as_python(function: Callable[..., Any], *operands: Any) -> None:
    try:
        want = function(*operands)
    except (ZeroDivisionError, OverflowError, ValueError):
        want = None
    fits = not isinstance(want, int) or -(2**63) <= want < 2**63
    if want is None or isinstance(want, complex) or not fits:
        # what Python cannot compute, or not within 64 bits, is an error or no finite number: never a wrong
        # one
        try:
            got = compute(function, *operands)
        except RuntimeError:
            return
        assert isinstance(got, float)
        assert not math.isfinite(got)
        return
    got = compute(function, *operands)
    assert type(got) is type(want)
    if isinstance(want, float) and function in (operator.pow, operator.truediv):
        assert got == pytest.approx(want, rel=1e-15, nan_ok=True)  # the last bit is the C library's
    else:
        assert got == want or (got != got and want != want)


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
@given(a=NUMBERS, b=NUMBERS)
@example(a=0, b=-math.inf)
def test_binary_builtins(function: Callable[[Any, Any], Any], a: Any, b: Any) -> None:
    if function is operator.pow and isinstance(a, int) and isinstance(b, int) and abs(b) > 200:
        b %= 64  # Python would compute all the digits
    if function in (torch.sym_min, torch.sym_max):
        a, b = int(bool(a)) if isinstance(a, bool) else a, int(b) if isinstance(b, bool) else b
        if type(a) is not type(b):
            a, b = float(a), float(b)  # export makes both floats where one is
    assert_as_python(function, a, b)


@pytest.mark.parametrize("function", UNARY, ids=lambda f: f.__name__)
@given(a=NUMBERS)
def test_unary_builtins(function: Callable[[Any], Any], a: Any) -> None:
    assert_as_python(function, a)


@pytest.mark.parametrize("function", [operator.and_, operator.or_, operator.xor], ids=lambda f: f.__name__)
@given(a=INTS | st.booleans(), b=INTS | st.booleans())
def test_bitwise_builtins(function: Callable[[Any, Any], Any], a: Any, b: Any) -> None:
    assert_as_python(function, a, b)


@given(a=INTS, b=st.integers(0, 70))
def test_shifts(a: int, b: int) -> None:
    assert_as_python(operator.rshift, a, b)
    if b < 63:
        assert_as_python(operator.lshift, a, b)


@given(a=st.floats(allow_nan=False, allow_infinity=False), digits=st.integers(0, 400))
def test_rounding_to_digits(a: float, digits: int) -> None:
    assert_as_python(round, a, digits)


def test_the_largest_int_does_not_wrap() -> None:
    for function, a, b in [
        (operator.add, 2**63 - 1, 1),
        (operator.mul, 2**62, 2),
        (operator.floordiv, -(2**63), -1),
    ]:
        with pytest.raises(RuntimeError, match=r"does not fit into 64 bits(.|\n)*node 'node'"):
            compute(function, a, b)


def test_sums_choices_items_and_functions() -> None:
    assert compute(torch.sym_sum, [1, 2, 3]) == 6
    assert compute(torch.sym_ite, True, 1, 2) == 1
    assert compute(operator.getitem, [5, 6, 7], -1) == 7
    assert compute(torch._sym_sqrt, 2) == math.sqrt(2)
    assert compute(round, 25, -1) == 20
    assert compute(round, 35, -1) == 40
    with pytest.raises(IndexError, match="index 3 is out of range for 3 values"):
        compute(operator.getitem, [5, 6, 7], 3)
    with pytest.raises(RuntimeError, match="zero to a negative power"):
        compute(operator.pow, 0, -1)


def test_every_name_has_a_builtin() -> None:
    for name in {*BUILTINS.values(), *FUNCTIONS.values()}:
        step = {"name": "", "where": "", "op": name, "overload": None}
        C.Graph().set_code([{**step, "operands": (), "outputs": (), "unpack": False, "unsafe_writes": ()}])
