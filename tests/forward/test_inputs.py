"""Arguments are checked before the GIL is released; the error names the argument."""

# ruff: noqa: E501  # one case a row: a table reads better than its rows broken up
from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

import torchgil
from tests.forward.comparing import assert_same
from torchgil._torch_half import C
from torchgil.forward._inputs import plan_inputs


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, extra: dict[str, Tensor], n: int = 3, *, scale: float = 2.0, flag: bool = True
    ) -> Tensor:
        return self.linear(x) * scale + extra["bias"] * n + (1 if flag else 0)


def example() -> tuple[Tensor, dict[str, Tensor]]:
    return torch.ones(2, 4), {"bias": torch.ones(4), "other": torch.zeros(2)}


@pytest.fixture(scope="module")
def forward() -> Any:
    x, extra = example()
    return torchgil.nogil(
        Model().eval(),
        (x, extra, 3),
        {"scale": 2.0, "flag": True},
        dynamic_shapes={
            "x": {0: Dim("batch", min=2, max=8)},
            "extra": {"bias": {}, "other": {0: Dim("batch", min=2, max=8)}},
            "n": None,
            "scale": None,
            "flag": None,
        },
    )


X, EXTRA = example()
WRONG = [
    ("dtype", (X.double(), EXTRA), {}, ValueError, r"'x' was exported as float32\[batch, 4\] on cpu, got float64\[2, 4\].*dtype"),
    ("device", (X.to("meta"), EXTRA), {}, ValueError, "'x' was exported as .* on cpu, got .* on meta: its device"),
    ("layout", (X.to_sparse(), EXTRA), {}, ValueError, "'x' .*its layout differs"),
    ("fixed size", (torch.ones(2, 5), EXTRA), {}, ValueError, r"'x' .*got float32\[2, 5\].*dimension 1 must be 4, not 5"),
    ("rank", (torch.ones(4), EXTRA), {}, ValueError, "'x' .*number of dimensions"),
    ("too large", (torch.ones(9, 4), EXTRA), {}, ValueError, "'x' .*batch must be at least 2 and at most 8, not 9"),
    ("too small", (torch.ones(1, 4), EXTRA), {}, ValueError, "'x' .*batch must be at least 2 and at most 8, not 1"),
    ("shared size", (X, {"bias": torch.ones(4), "other": torch.ones(3)}), {}, ValueError, r"extra\['other'\]' .*batch is 2 in 'x', but 3 here"),
    ("no tensor", ([1.0], EXTRA), {}, TypeError, "'x' was exported as a tensor, got list"),
    ("none", (None, EXTRA), {}, TypeError, "'x' was exported as a tensor, got NoneType"),
    ("no dict", (X, X), {}, TypeError, "'extra' was exported as dict with 2 entries, got Tensor"),
    ("wrong key", (X, {"bias": X, "more": X}), {}, TypeError, "'extra' was exported with the keys 'bias', 'other', got 'bias', 'more'"),
    ("int constant", (X, EXTRA, 4), {}, ValueError, "'n' was exported as the constant 3, got 4"),
    ("bool for int", (X, EXTRA, True), {}, ValueError, "'n' was exported as the constant 3, got True"),
    ("float constant", (X, EXTRA, 3), {"scale": 2.5}, ValueError, r"'scale' was exported as the constant 2\.0"),
    ("bool constant", (X, EXTRA, 3), {"flag": False}, ValueError, "'flag' was exported as the constant True"),
    ("missing", (X,), {}, TypeError, "missing a required argument: 'extra'"),
    ("too many", (X, EXTRA, 3, 4), {}, TypeError, "too many positional arguments"),
    ("unknown", (X, EXTRA, 3), {"more": 1}, TypeError, "unexpected keyword argument 'more'"),
    ("fake tensor", (torch.ones(2, 4), EXTRA), {}, TypeError, "'x' is a tensor subclass"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "error", "match"), [pytest.param(*w[1:], id=w[0]) for w in WRONG])
def test_a_wrong_argument_is_named(
    forward: Any, args: Any, kwargs: Any, error: type[Exception], match: str, request: pytest.FixtureRequest
) -> None:
    if "fake tensor" in request.node.name:
        with torch._subclasses.FakeTensorMode() as mode:
            args = (mode.from_tensor(args[0]), args[1])
    before = C.forward_releases()
    with pytest.raises(error, match=match):
        forward(*args, **kwargs)
    assert C.forward_releases() == before


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_refused_by_name(forward: Any) -> None:
    with pytest.raises(TypeError, match="argument 'x' is a nested tensor; pass a plain"):
        forward(torch.nested.nested_tensor([X[0], X[1]]), EXTRA)


def test_arguments_may_be_given_as_the_model_takes_them(forward: Any) -> None:
    x, extra = example()
    want = forward(x, extra, 3, scale=2.0, flag=True)
    assert_same(forward(x, extra), want)
    assert_same(forward(x=x, extra=extra), want)
    assert_same(forward(x, n=3, extra=extra, flag=True), want)
    assert_same(forward(x, {"other": extra["other"], "bias": extra["bias"]}), want)


def test_an_exported_program_takes_its_names_too() -> None:
    program = torch.export.export(nn.Linear(4, 2), (X,))
    forward = torchgil.nogil(program)
    assert_same(forward(input=X), forward(X))
    with pytest.raises(TypeError, match="missing 'input'"):
        forward()
    with pytest.raises(TypeError, match="at most 1 positional"):
        forward(X, X)
    with pytest.raises(TypeError, match="two values for 'input'"):
        forward(X, input=X)
    with pytest.raises(TypeError, match="'more' was not exported"):
        forward(X, more=1)


def test_an_argument_left_out_at_export_may_only_have_its_default() -> None:
    forward = torchgil.nogil(Model().eval(), example())
    x, extra = example()
    assert_same(forward(x, extra, 3, scale=2.0), forward(x, extra))
    with pytest.raises(TypeError, match="'scale' was not exported"):
        forward(x, extra, scale=3.0)


class Parameter(nn.Module):
    def forward(self, rest_0: Tensor, *rest: Tensor, k: int = 1) -> Tensor:
        return 10 * rest_0 + rest[0] + k


class Keyword(nn.Module):
    def forward(self, *rest: Tensor, k: int = 1, **more: Tensor) -> Tensor:
        return 10 * rest[0] + more["rest_0"] + k


def test_a_parameter_is_not_taken_for_an_item_of_the_rest_that_has_its_name() -> None:
    x, y = torch.tensor([1.0]), torch.tensor([2.0])
    forward = torchgil.nogil(Parameter(), (x, y), {"k": 1})
    assert_same(forward(x, y), forward(x, y, k=1))  # binds: an argument is left out
    assert_same(forward(x, y), torch.tensor([13.0]))
    assert_same(torchgil.nogil(Keyword(), (x,), {"rest_0": y, "k": 1})(x, rest_0=y), torch.tensor([13.0]))


def test_arguments_that_a_program_calls_alike_are_given_by_position_alone() -> None:
    x, y = torch.tensor([1.0]), torch.tensor([2.0])
    forward = torchgil.nogil(torch.export.export(Parameter(), (x, y), {"k": 1}))
    assert_same(forward(x, y, k=1), torch.tensor([13.0]))
    with pytest.raises(TypeError, match="missing 'argument 1'"):
        forward(x, k=1)
    with pytest.raises(TypeError, match="'rest_0' was not exported"):
        forward(x, rest_0=y, k=1)


@pytest.mark.parametrize(
    ("default", "other"),
    [(0.0, -0.0), (1, True), (1, 1.0), ((0.0,), (-0.0,)), ([1], [True]), ({"a": 1}, {"a": 1.0})],
)
def test_what_equals_a_default_is_not_yet_the_default(default: Any, other: Any) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Any = default) -> Tensor:
            return x

    forward = torchgil.nogil(Scaled(), (X,))
    assert_same(forward(X, copy.deepcopy(default)), X)
    with pytest.raises(TypeError, match="'scale' was not exported"):
        forward(X, other)


def test_none_and_nan_are_constants_like_others() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None, fill: float) -> Tensor:
            return x if mask is None else x.masked_fill(mask, fill)

    nan = float("nan")
    forward = torchgil.nogil(Masked(), (X, None, nan))
    assert_same(forward(X, None, nan), X)
    with pytest.raises(ValueError, match="'mask' was exported as the constant None"):
        forward(X, X > 0, nan)
    with pytest.raises(ValueError, match="'fill' was exported as the constant nan"):
        forward(X, None, 0.0)


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_sizes_that_export_only_assumes_are_taken_as_its_module_takes_them(size: int) -> None:
    program = torch.export.export(nn.Linear(4, 2), (X,), dynamic_shapes={"input": {0: Dim.DYNAMIC}})
    x = torch.randn(size, 4)
    with torch.inference_mode():
        want = program.module()(x)
    assert_same(torchgil.nogil(program)(x), want)


def test_guards_that_export_found_are_asserted() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.view(2, -1).sum() + y.sum() + (x + y[1:]).sum()

    half = Dim("half", min=2, max=50)
    program = torch.export.export(
        Halves(),
        (torch.ones(4, 3), torch.ones(5, 3)),
        dynamic_shapes={"x": {0: 2 * half}, "y": {0: 2 * half + 1}},
    )
    forward = torchgil.nogil(program)
    assert forward(torch.ones(6, 3), torch.ones(7, 3)) == 18 + 21 + 36
    for x, y in [(6, 8), (5, 6), (7, 8)]:
        with pytest.raises(AssertionError, match="Guard failed"):
            program.module()(torch.ones(x, 3), torch.ones(y, 3))
        with pytest.raises(
            (ValueError, RuntimeError), match=r"do not fulfil what export assumed: .*shape\[0\]"
        ):
            forward(torch.ones(x, 3), torch.ones(y, 3))


def test_dynamic_ints_keep_to_their_bounds() -> None:
    class Zeros(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            return torch.cat([x, torch.zeros(n)])

    forward = torchgil.nogil(Zeros(), (torch.ones(2), 4), dynamic_shapes=(None, Dim.DYNAMIC(max=9)))
    assert forward(torch.ones(2), 7).shape == (9,)
    with pytest.raises(ValueError, match="argument 'n', an int: n must be at most 9, not 10"):
        forward(torch.ones(2), 10)
    with pytest.raises(TypeError, match="'n' was exported as an int, got bool"):
        forward(torch.ones(2), True)


class Plus(nn.Module):
    def forward(self, x: Tensor, n: int) -> Tensor:
        return x + n


@pytest.mark.parametrize("hint", [Dim.DYNAMIC, Dim.AUTO])
@pytest.mark.parametrize("made_with", [3, 1, 0, -3])
def test_an_int_may_be_any_that_export_allows(hint: Any, made_with: int) -> None:
    forward = torchgil.nogil(
        Plus(), (torch.ones(2, dtype=torch.int64), made_with), dynamic_shapes=(None, hint)
    )
    for n in (-(2**63), -1, 0, 1, 2, 2**62):
        assert forward(torch.ones(2, dtype=torch.int64), n).tolist() == [n + 1] * 2
    for n in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"'n' was exported as an int of 64 bits, got {n}"):
            forward(torch.ones(2, dtype=torch.int64), n)


def test_an_int_keeps_to_what_was_declared_and_to_what_export_found() -> None:
    x = torch.ones(2)
    forward = torchgil.nogil(Plus(), (x, 3), dynamic_shapes=(None, Dim.DYNAMIC(min=0, max=9)))
    assert forward(x, 0).tolist() == [1, 1]
    for n in (-1, 10):
        with pytest.raises(ValueError, match=f"n must be at least 0 and at most 9, not {n}"):
            forward(x, n)
    forward = torchgil.nogil(Plus(), (x, 3), dynamic_shapes=(None, Dim.DYNAMIC(min=1)))
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        forward(x, 0)

    class Sign(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            return x + n if n >= 0 else x - n

    forward = torchgil.nogil(Sign(), (x, 3), dynamic_shapes=(None, Dim.DYNAMIC))
    assert forward(x, 0).tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="do not fulfil what export assumed: n >= 0"):
        forward(x, -1)


@pytest.mark.parametrize(
    "bounds", [(-math.inf, math.inf), ("-oo", "oo"), (-7, 9), (-(2**70), 2**70), (3, "oo")]
)
def test_ranges_of_ints_are_read_as_torch_writes_them(bounds: tuple[Any, Any]) -> None:
    low, high = (int_oo if b == "oo" else -int_oo if b == "-oo" else b for b in bounds)
    program = torch.export.export(Plus(), (torch.ones(2), 3), dynamic_shapes=(None, Dim.DYNAMIC))
    (symbol,) = program.range_constraints
    program.range_constraints[symbol] = ValueRanges(low, high)
    (dimension,) = plan_inputs(program).dimensions.values()
    # what is no larger than 2 says nothing of an int: its own module looks at no such bound either
    assert dimension.low == (3 if low == 3 else None)
    assert dimension.high == (9 if high == 9 else None)


def test_sizes_and_ints_that_depend_on_each_other_are_compared() -> None:
    class Related(nn.Module):
        def forward(self, x: Tensor, n: int, m: int) -> Tensor:
            if x.shape[0] == 2 * n and m == x.shape[0] + 1:
                return x + n + m
            return x - n

    forward = torchgil.nogil(
        Related(), (torch.ones(4), 2, 5), dynamic_shapes=({0: Dim.DYNAMIC}, *[Dim.DYNAMIC] * 2)
    )
    assert torch.equal(forward(torch.ones(6), 3, 7), Related()(torch.ones(6), 3, 7))
    for size, n, m in [(6, 2, 7), (6, 3, 8), (5, 2, 6)]:
        with pytest.raises((ValueError, RuntimeError), match="nogil: "):
            forward(torch.ones(size), n, m)


def test_a_size_that_must_be_even_is_asked_whether_it_is() -> None:
    """No argument shows `half` itself, and the graph was simplified as if there were one."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: (x.shape[0] + 1) // 2]

    half = Dim("half", min=2, max=50)
    forward = torchgil.nogil(Halves(), (torch.arange(4.0),), dynamic_shapes=({0: 2 * half},))
    assert forward(torch.arange(6.0)).shape == (3,)
    with pytest.raises(RuntimeError, match=r"export assumed: x\.shape\[0\] % 2 == 0"):
        forward(torch.arange(7.0))
    forward = torchgil.nogil(Halves(), (torch.arange(5.0),), dynamic_shapes=({0: 2 * half + 1},))
    assert forward(torch.arange(7.0)).shape == (4,)
    with pytest.raises(RuntimeError, match=r"export assumed: \(x\.shape\[0\] - 1\) % 2 == 0"):
        forward(torch.arange(6.0))


@pytest.mark.parametrize("declared", [Dim("rows", max=64), Dim.DYNAMIC(max=64), Dim.DYNAMIC])
@pytest.mark.parametrize("size", [0, 1, 2, 64])
def test_an_upper_bound_declares_no_lower_one(declared: Any, size: int) -> None:
    model = nn.Linear(4, 4).eval()
    forward = torchgil.nogil(model, (torch.ones(2, 4),), dynamic_shapes={"input": {0: declared}})
    x = torch.randn(size, 4)
    assert torch.equal(forward(x), model(x))


def test_a_lower_bound_that_was_declared_is_kept() -> None:
    rows = Dim("rows", min=2, max=64)
    forward = torchgil.nogil(nn.Linear(4, 4).eval(), (torch.ones(3, 4),), dynamic_shapes={"input": {0: rows}})
    with pytest.raises(ValueError, match="must be at least 2"):
        forward(torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")  # torch's own use
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
def test_a_tensor_that_is_being_differentiated_is_refused_and_not_given_zeros() -> None:
    model = nn.Linear(3, 1).eval()
    x = torch.ones(3)
    forward = torchgil.nogil(model, (x,))
    assert torch.func.grad(lambda x: model(x).sum())(x).ne(0).any()
    with pytest.raises(TypeError, match=r"argument 'input' is being differentiated \(torch.func"):
        torch.func.grad(lambda x: forward(x).sum())(x)
    with pytest.raises(TypeError, match="call the model itself"):
        torch.func.jvp(forward, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="being differentiated"):
        forward(torch.autograd.forward_ad.make_dual(x, x))


def test_a_subclass_with_torch_functions_of_its_own_is_refused_and_a_parameter_is_not() -> None:
    class Sub(torch.Tensor):
        pass

    forward = torchgil.nogil(nn.Linear(4, 2).eval(), (X,))
    with pytest.raises(TypeError, match=r"argument 'input' is a tensor subclass \(.*Sub\), whose ops run in"):
        forward(X.as_subclass(Sub))
    with torch.device("cpu"):  # a mode is no subclass
        assert_same(forward(nn.Parameter(X)), forward(X))
