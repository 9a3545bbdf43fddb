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

from torchgil._torch_half import C
from torchgil.forward._builtin_functions import BUILTINS, FUNCTIONS

INTS = st.integers(-(2**63), 2**63 - 1)
EDGES = st.sampled_from([2**53, 2**62, 2**63]).flatmap(lambda e: st.integers(e - 3, e + 3))
FLOATS = (
    st.floats()
    | EDGES.map(float)
    | st.integers(-(10**6), 10**6).map(lambda n: n / 2)  # ties
    | st.integers(-(10**6), 10**6).map(lambda n: n / 1000)
)
NUMBERS = (
    INTS | EDGES.filter(lambda n: n < 2**63) | EDGES.map(lambda n: -n if n <= 2**63 else 0)
    | st.integers(-9, 9) | FLOATS | st.booleans()
)  # fmt: skip

BINARY: list[Callable[[Any, Any], Any]] = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, min, max,
]  # fmt: skip
UNARY: list[Callable[[Any], Any]] = [
    operator.neg, operator.pos, operator.abs, operator.not_, math.ceil, math.floor, math.trunc, round, int,
    float, bool, math.sqrt, math.log2, math.cos, math.sin, math.tan, math.cosh, math.sinh, math.tanh,
    math.acos, math.asin, math.atan,
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
    """The same type and bits, or the same exception; what 64 bits do not hold is an error, as complex is."""
    try:
        want = function(*operands)
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        too_large = str(error) == "complex exponentiation"  # and complex, which is refused here
        with pytest.raises(ValueError if too_large else type(error), match=r"."):
            compute(function, *operands)
        return
    if isinstance(want, complex):
        with pytest.raises(ValueError, match="is complex"):
            compute(function, *operands)
        return
    if isinstance(want, int) and not -(2**63) <= want < 2**63:
        with pytest.raises(RuntimeError, match="does not fit into 64 bits"):
            compute(function, *operands)
        return
    got = compute(function, *operands)
    assert type(got) is type(want)
    assert got == want or (got != got and want != want)
    assert math.copysign(1, got) == math.copysign(1, want) or want != want  # 0.0 is no -0.0


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
@given(a=NUMBERS, b=NUMBERS)
@example(a=0, b=-math.inf)
@example(a=0, b=-5)
@example(a=4391, b=6781)
@example(a=2**62 + 1, b=3 * 2**60 - 1)
@example(a=-(2**63), b=-1)
@example(a=2**53 + 1, b=2.0**53)
@example(a=-2.0, b=1023.0)
@example(a=-8, b=1 / 3)
@example(a=-2, b=1024.5)
@example(a=1e200, b=2)
@example(a=-0.0, b=0.0)
def test_binary_builtins(function: Callable[[Any, Any], Any], a: Any, b: Any) -> None:
    if function is operator.pow and isinstance(a, int) and isinstance(b, int) and abs(b) > 200:
        b %= 64  # Python would compute all the digits
    assert_as_python(function, a, b)


@given(a=INTS, b=INTS)
def test_the_quotient_of_two_ints_is_rounded_once(a: int, b: int) -> None:
    assert_as_python(operator.truediv, a, b)


@pytest.mark.parametrize("function", [torch.sym_min, torch.sym_max], ids=lambda f: f.__name__)
@given(a=INTS | FLOATS, b=INTS | FLOATS)
@example(a=2**53 + 1, b=2.0**53)
def test_choices_of_torchs_own_are_floats_where_one_is(
    function: Callable[[Any, Any], Any], a: Any, b: Any
) -> None:
    assert_as_python(function, a, b)


@given(numbers=st.lists(INTS | FLOATS, min_size=3, max_size=5))
def test_choices_among_several_keep_the_first(numbers: list[Any]) -> None:
    assert_as_python(min, *numbers)
    assert_as_python(max, *numbers)


@pytest.mark.parametrize("function", UNARY, ids=lambda f: f.__name__)
@given(a=NUMBERS)
@example(a=-0.0)
@example(a=math.nan)
@example(a=-math.inf)
@example(a=2.0**63)
def test_unary_builtins(function: Callable[[Any], Any], a: Any) -> None:
    assert_as_python(function, a)


@pytest.mark.parametrize("function", [operator.and_, operator.or_, operator.xor], ids=lambda f: f.__name__)
@given(a=INTS | st.booleans(), b=INTS | st.booleans())
def test_bitwise_builtins(function: Callable[[Any, Any], Any], a: Any, b: Any) -> None:
    assert_as_python(function, a, b)


@given(a=INTS | st.integers(-9, 9), b=st.integers(-3, 70))
@example(a=-1, b=63)
@example(a=0, b=70)
def test_shifts(a: int, b: int) -> None:
    assert_as_python(operator.rshift, a, b)
    assert_as_python(operator.lshift, a, b)


@given(a=FLOATS, digits=st.integers(-330, 400) | st.integers(-6, 6))
@example(a=2.5, digits=-1)
@example(a=25.0, digits=-1)
@example(a=35.0, digits=-1)
@example(a=25.000000000000004, digits=-1)
@example(a=-4.0, digits=-1)
@example(a=1.7976931348623157e308, digits=-308)
@example(a=9.5, digits=-1)
@example(a=2.675, digits=2)
@example(a=0.1, digits=-(2**63))
def test_rounding_a_float_to_digits(a: float, digits: int) -> None:
    assert_as_python(round, a, digits)


@given(a=INTS, digits=st.integers(-25, 3))
@example(a=2**63 - 1, digits=-19)
@example(a=5 * 10**18, digits=-19)
@example(a=-(2**63), digits=-1)
@example(a=25, digits=-1)
def test_rounding_an_int_to_tens(a: int, digits: int) -> None:
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
    with pytest.raises(ZeroDivisionError, match="negative power") as error:
        compute(operator.pow, 0, -1)
    assert "node 'node'" in getattr(error.value, "__notes__", ["node 'node'"])[0]  # Python 3.11
    with pytest.raises(OverflowError, match="the int 9223372036854775808 does not fit into 64 bits"):
        compute(operator.neg, 2**63)


def test_every_name_has_a_builtin() -> None:
    for name in {*BUILTINS.values(), *FUNCTIONS.values()}:
        step = {"name": "", "where": "", "op": name, "overload": None}
        C.Graph().set_code([{**step, "operands": (), "outputs": (), "unpack": False, "unsafe_writes": ()}])
