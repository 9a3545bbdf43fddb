"""Whatever torch's guard printer can write is understood, and means what it means to torch."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import sympy
import torch
import torch.utils._sympy.functions as functions
from torch import Tensor
from torch._export.serde import serialize
from torch.fx.experimental import sym_node, symbolic_shapes
from torch.fx.experimental.symbolic_shapes import ShapeGuardPythonPrinter

from torchgil._torch_half import C
from torchgil.forward._builtin_functions import BUILTINS
from torchgil.forward._graph import add_checks
from torchgil.forward._guards import Guards
from torchgil.forward._inputs import Dimension, InputPlan, Leaf
from torchgil.forward._sources import Place, Sources

A, B = sympy.symbols("a b", integer=True, positive=True)
SOURCES = {A: "L['x'].size()[0]", B: "L['x'].size()[1]"}
# sympy's own notation, which no Python knows: torch fails over it as well (Piecewise: 2.9 alone)
NOT_TORCHS_EITHER = {"Where", "Piecewise", "OpaqueUnaryFn_exp", "OpaqueUnaryFn_log", "OpaqueUnaryFn_asinh"}
SIZES = [(1, 1), (2, 3), (7, 2), (12, 5), (9, 9)]


class Source:
    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> Any:
        return _Name(self._name)


class _Name(str):
    def __call__(self) -> str:  # a method in torch 2.9, a property in 2.15
        return str(self)


def printed(expr: sympy.Basic) -> str:
    table = {symbol: [Source(source)] for symbol, source in SOURCES.items()}
    return str(ShapeGuardPythonPrinter(table, lambda source: str(source.name), table).doprint(expr))


def of_two(function: Any) -> Any:
    """The function of as many of (a, b) and small numbers as it takes; None if it takes none such."""
    for arguments in (
        (A, B),
        (A,),
        (A / 1, sympy.Integer(3)),
        (A, B, sympy.Integer(5)),
        (A > B, A, B),
        (A, A, B, 1),
    ):
        try:
            expr = function(*arguments)
        except Exception:  # not so many arguments, or not of such a kind
            continue
        if isinstance(expr, sympy.Basic) and expr.free_symbols:
            return expr
    return None


def vocabulary() -> dict[str, Any]:
    """Every function that a size can go through, by torch's own list of them, and sympy's own nodes."""
    found = {
        name: of_two(function)
        for name, function in vars(functions).items()
        if inspect.isclass(function) and function.__module__ == functions.__name__
    }
    third = functions.FloatTrueDiv(functions.ToFloat(A), functions.ToFloat(B))
    nodes = {
        "Add": A + B,
        "Mul": 2 * A * B,
        "Pow": A**3,
        "Neg": -A,
        "Float": A + sympy.Float(0.1),
        "Abs": sympy.Abs(A - B),
        "floor": sympy.floor(A / 2),
        "ceiling": sympy.ceiling(A / 2),
        "Piecewise": sympy.Piecewise((A, A > B), (B, True)),
        "Infinity": sympy.Lt(A, sympy.oo, evaluate=False),
        "RoundDecimal": functions.RoundDecimal(third, sympy.Integer(2)),
        "FloorToInt": functions.FloorToInt(third),
        "CeilToInt": functions.CeilToInt(third),
        "TruncToInt": functions.TruncToInt(third),
        "RoundToInt": functions.RoundToInt(third),
        "FloatPow": functions.FloatPow(functions.ToFloat(A), sympy.Float(0.5)),
    }
    for name in ("Eq", "Ne", "Lt", "Le", "Gt", "Ge"):
        nodes[name] = getattr(sympy, name)(A, B)
    nodes.update(And=sympy.And(A > 2, B > 2), Or=sympy.Or(A > 2, B > 2), Not=sympy.Not(sympy.Eq(A % 2, B)))
    return {**{name: expr for name, expr in found.items() if expr is not None}, **nodes}


VOCABULARY = vocabulary()


def evaluated(text: str, x: Tensor) -> Any:
    """What torch's own guard function makes of a text."""
    return eval(text, {**symbolic_shapes.SYMPY_INTERP, "math": math, "inf": math.inf, "L": {"x": x}})


def guarded(text: str, x: Tensor) -> None:
    """Runs a program that does nothing but look at a guard."""
    guards = Guards(Sources([Place("x", (("x",),))], None), {})
    guards.require(text)
    leaf = Leaf("x", x.dtype, x.device, x.layout, ("a", "b"))
    dimensions = {name: Dimension(name, 0, None) for name in "ab"}
    graph = C.Graph()
    add_checks(graph, InputPlan((leaf,), dimensions, tuple(guards.code), ("x",)))
    graph.set_outputs([("input", 0)])
    graph.run([x])


@pytest.mark.parametrize("name", VOCABULARY)
def test_what_the_printer_writes_is_computed_as_torch_computes_it(name: str) -> None:
    try:
        text = printed(VOCABULARY[name])
    except (NotImplementedError, TypeError):  # 2.9: "Cannot convert symbols to int"
        pytest.skip("torch's printer does not write it")
    for sizes in SIZES:
        x = torch.empty(sizes)
        try:
            value = evaluated(text, x)
        except NameError:
            assert name in NOT_TORCHS_EITHER
            with pytest.raises(NotImplementedError, match="is not understood; export with other"):
                guarded(text, x)
            return
        except (ValueError, TypeError):  # asin(2); what 2.9 calls with arguments it does not take
            continue
        guarded(f"({text}) == {value!r}", x)
        with pytest.raises(RuntimeError, match="do not fulfil what export assumed: "):
            guarded(f"({text}) != {value!r}", x)


def test_the_walk_is_no_stroll() -> None:
    assert len(VOCABULARY) >= 45
    assert {
        "Max",
        "Min",
        "ToFloat",
        "Mod",
        "FloorDiv",
        "OpaqueUnaryFn_sqrt",
        "RoundDecimal",
    } <= VOCABULARY.keys()


def test_every_operation_on_sizes_that_a_graph_can_hold_is_a_builtin() -> None:
    assert [op for op in serialize._SYM_OPS if op not in BUILTINS] == []
    known = {"is_integer"}  # a lambda: not in any graph that can be saved
    assert [n for n, op in sym_node.METHOD_TO_OPERATOR.items() if op not in BUILTINS and n not in known] == []
