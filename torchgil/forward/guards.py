"""What export assumed about sizes, as instructions that assert it.

Export writes its assumptions as Python text (``L['x'].size()[0] % 2 == 0``). Parsed here, not evaluated: the
program runs them as a few builtins before each call. The text may hold what torch's own guard function can
evaluate: `ShapeGuardPythonPrinter` writes it, in the words of `math`, `torch` and Python.
"""

from __future__ import annotations

import ast
import builtins
import math
from collections.abc import Mapping
from typing import Final

import torch

from torchgil.forward.builtins import BUILTINS, FUNCTIONS
from torchgil.forward.operands import Constant, Input, Instruction, Operand, Slot
from torchgil.forward.unsupported import refuse

__all__ = ["Guards"]

_BINARY: Final = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.BitAnd: "and",
    ast.BitOr: "or",
    ast.BitXor: "xor",
    ast.LShift: "lshift",
    ast.RShift: "rshift",
}
_COMPARE: Final = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
}
_UNARY: Final = {ast.USub: "neg", ast.UAdd: "pos", ast.Not: "not"}


class Guards:
    """Collects instructions; each writes the slot of its own number.

    Args:
        sources: The flattened input that each source text stands for, ``L['x']`` say.
        symbols: The sizes that symbols stand for, as ``(input, dimension)``.
    """

    def __init__(self, sources: Mapping[str, int], symbols: Mapping[str, tuple[int, int]]) -> None:
        self.code: list[Instruction] = []
        self._sources = {_normal(source): index for source, index in sources.items()}
        self._symbols = symbols

    def require(self, text: str, shown: str) -> None:
        """Assert an expression.

        Args:
            text: The expression over sources and symbols.
            shown: The same in the user's names, for the error.
        """
        condition = self._lower(ast.parse(text, mode="eval").body, shown)
        self._emit(
            "assert", condition, Constant(f"nogil: the inputs do not fulfil what export assumed: {shown}")
        )

    def _emit(self, op: str, *operands: Operand) -> Slot:
        slot = len(self.code)
        self.code.append(Instruction("guard", "", op, None, operands, (slot,)))
        return Slot(slot)

    def _lower(self, node: ast.expr, shown: str) -> Operand:
        def lower(child: ast.expr) -> Operand:
            return self._lower(child, shown)

        if (source := self._sources.get(ast.unparse(node))) is not None:
            return Input(source)
        match node:
            case ast.Constant(value=bool() | int() | float() as value):
                return Constant(value)
            case ast.Attribute(value=ast.Name(id="math"), attr=("inf" | "nan") as name):
                return Constant(getattr(math, name))
            case ast.Name(id=name) if name in self._symbols:
                index, dimension = self._symbols[name]
                return self._emit("size", Input(index), Constant(dimension))
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=tensor, attr=("size" | "stride") as attr)),
                slice=ast.Constant(value=int() as dimension),
            ):
                return self._emit(attr, lower(tensor), Constant(dimension))
            case ast.Call(
                func=ast.Attribute(value=tensor, attr=("numel" | "storage_offset") as attr), args=[]
            ):
                return self._emit(attr, lower(tensor))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self._emit(_BINARY[type(op)], lower(left), lower(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return self._emit(_UNARY[type(op)], lower(operand))
            case ast.BoolOp(op=op, values=values):
                return self._all("and" if isinstance(op, ast.And) else "or", [lower(v) for v in values])
            case ast.Compare(left=first, ops=ops, comparators=rest) if all(
                type(op) in _COMPARE for op in ops
            ):
                terms = [lower(v) for v in (first, *rest)]
                pairs = zip(ops, terms, terms[1:], strict=False)
                return self._all("and", [self._emit(_COMPARE[type(op)], a, b) for op, a, b in pairs])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._emit("ite", lower(test), lower(body), lower(orelse))
            case ast.Call(func=function, args=args, keywords=[]) if called := _builtin(function):
                return self._emit(called, *(lower(a) for a in args))
        return refuse(
            f"export assumes {shown!r}, and {ast.unparse(node)!r} is not understood",
            "export with other dynamic_shapes",
        )

    def _all(self, op: str, terms: list[Operand]) -> Operand:
        result = terms[0]
        for term in terms[1:]:
            result = self._emit(op, result, term)
        return result


def _builtin(function: ast.expr) -> str | None:
    match function:
        case ast.Name(id=name):
            return FUNCTIONS.get(name) or BUILTINS.get(getattr(builtins, name, None))
        case ast.Attribute(value=ast.Name(id=("math" | "torch") as module), attr=name):
            return BUILTINS.get(getattr({"math": math, "torch": torch}[module], name, None))
    return None


def _normal(source: str) -> str:
    return ast.unparse(ast.parse(source, mode="eval"))
