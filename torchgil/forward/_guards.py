"""What export assumed about sizes, as instructions that assert it.

Export writes its assumptions as Python text (``L['x'].size()[0] % 2 == 0``). Parsed here, not evaluated: the
program runs them as a few builtins before each call. The text may hold what torch's own guard function can
evaluate: `ShapeGuardPythonPrinter` writes it, in the words of `math`, `torch` and Python.
"""

from __future__ import annotations

import ast
import builtins
import copy
import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from torchgil.forward._builtin_functions import BUILTINS, FUNCTIONS
from torchgil.forward._operands import Constant, Input, Instruction, Operand, Slot
from torchgil.forward._sources import Sources
from torchgil.forward._unsupported import refuse

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
_INSTEAD: Final = "export with other dynamic_shapes"
_UNARY: Final = {ast.USub: "neg", ast.UAdd: "pos", ast.Not: "not"}


class Guards:
    """Collects instructions; each writes the slot of its own number.

    Args:
        sources: The flattened input that each source stands for, ``L['x']`` say.
        symbols: Where symbols are seen: ``(input, dimension)``, or ``(input, None)`` for an int.
    """

    def __init__(self, sources: Sources, symbols: Mapping[str, tuple[int, int | None]]) -> None:
        self.code: list[Instruction] = []
        self._sources = sources
        self._symbols: dict[str, Operand | tuple[int, int | None]] = dict(symbols)

    def require(self, text: str) -> None:
        """Assert an expression over sources and symbols, as export wrote it."""
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError):
            refuse(f"export assumes {text!r}, which is no Python", _INSTEAD)
        self._assert(self._lower(tree, text), self._shown(tree))

    def require_equal(self, index: int, place: int | None, text: str) -> None:
        """Assert that a size, or an int where `place` is None, is what an expression over symbols says."""
        tree = ast.parse(text, mode="eval").body
        seen = self._seen(index, place)
        equal = self._emit("eq", seen, self._lower(tree, text))
        self._assert(equal, f"{self._named(index, place)} == {self._shown(tree)}")

    def define(self, symbol: str, index: int, place: int | None, factor: int, offset: int) -> None:
        """Take a symbol that no argument shows from one that is ``factor * symbol + offset``."""
        rest = self._emit("sub", self._seen(index, place), Constant(offset))
        whole = self._emit("eq", self._emit("mod", rest, Constant(factor)), Constant(0))
        named = self._named(index, place) + (f" - {offset}" if offset else "")
        self._assert(whole, f"({named}) % {factor} == 0" if offset else f"{named} % {factor} == 0")
        self._symbols[symbol] = self._emit("floordiv", rest, Constant(factor))

    def knows(self, symbol: str) -> bool:
        """Whether `symbol` is seen in an argument, or was defined."""
        return symbol in self._symbols

    def _assert(self, condition: Operand, shown: str) -> None:
        self._emit(
            "assert", condition, Constant(f"nogil: the inputs do not fulfil what export assumed: {shown}")
        )

    def _emit(self, op: str, *operands: Operand) -> Slot:
        slot = len(self.code)
        self.code.append(Instruction("guard", "", op, None, operands, (slot,)))
        return Slot(slot)

    def _seen(self, index: int, place: int | None) -> Operand:
        return Input(index) if place is None else self._emit("size", Input(index), Constant(place))

    def _named(self, index: int, place: int | None) -> str:
        name = self._sources.names[index]
        return name if place is None else f"{name}.shape[{place}]"

    def _lower(self, node: ast.expr, shown: str) -> Operand:
        def lower(child: ast.expr) -> Operand:
            return self._lower(child, shown)

        leaves = self._sources.find(node)
        if len(leaves) > 1:
            names = " and ".join(repr(self._sources.names[i]) for i in sorted(leaves))
            refuse(
                f"export assumes {shown!r}, and {ast.unparse(node)!r} may mean each of {names}",
                "pass the module instead of its exported program, or rename an argument",
            )
        if leaves:
            return Input(*leaves)
        match node:
            case ast.Constant(value=bool() | int() | float() as value):
                return Constant(value)
            case ast.Attribute(value=ast.Name(id="math"), attr=("inf" | "nan") as name):
                return Constant(getattr(math, name))
            case ast.Name(id=name) if (known := self._symbols.get(name)) is not None:
                return self._seen(*known) if isinstance(known, tuple) else known
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
        return refuse(f"export assumes {shown!r}, and {ast.unparse(node)!r} is not understood", _INSTEAD)

    def _shown(self, tree: ast.expr) -> str:
        """An expression in the user's names."""
        return ast.unparse(_Shown(self).visit(copy.deepcopy(tree)))

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


class _Shown(ast.NodeTransformer):
    """Puts the user's names in the place of sources and symbols."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards

    def visit(self, node: Any) -> Any:
        if not isinstance(node, ast.expr):
            return self.generic_visit(node)
        if leaves := self._guards._sources.find(node):
            return ast.Name(self._guards._sources.names[min(leaves)])
        match node:
            case ast.Name(id=name) if isinstance(known := self._guards._symbols.get(name), tuple):
                return ast.Name(self._guards._named(*known))
            case ast.Subscript(value=ast.Call(func=ast.Attribute(value=tensor, attr="size")), slice=place):
                return ast.Subscript(ast.Attribute(self.visit(tensor), "shape"), place)
        return self.generic_visit(node)
