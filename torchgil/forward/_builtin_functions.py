"""What export emits besides operators, in graphs and in guards: arithmetic over sizes, and their assertions.

The program computes these itself, to Python's bits and exceptions: `csrc/torch/forward/builtins.cpp`.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Final

import torch

__all__ = ["BUILTINS", "FUNCTIONS"]

_aten = torch.ops.aten

BUILTINS: Final[dict[Any, str]] = {
    operator.getitem: "getitem",
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "truediv",
    operator.floordiv: "floordiv",
    operator.mod: "mod",
    operator.pow: "pow",
    pow: "pow",
    operator.neg: "neg",
    operator.pos: "pos",
    operator.abs: "abs",
    abs: "abs",
    operator.eq: "eq",
    operator.ne: "ne",
    operator.lt: "lt",
    operator.le: "le",
    operator.gt: "gt",
    operator.ge: "ge",
    operator.and_: "and",
    operator.or_: "or",
    operator.xor: "xor",
    operator.not_: "not",
    operator.lshift: "lshift",
    operator.rshift: "rshift",
    math.ceil: "ceil",
    math.floor: "floor",
    math.trunc: "trunc",
    round: "round",
    int: "int",
    float: "float",
    bool: "bool",
    min: "min",
    max: "max",
    torch.sym_not: "not",
    torch.sym_int: "int",
    torch.sym_float: "float",
    torch.sym_min: "sym_min",
    torch.sym_max: "sym_max",
    torch.sym_sum: "sum",
    torch.sym_ite: "ite",
    math.sqrt: "sqrt",
    torch._sym_sqrt: "sqrt",  # type: ignore[attr-defined]
    math.log2: "log2",
    torch._sym_log2: "log2",  # type: ignore[attr-defined]
    math.cos: "cos",
    torch._sym_cos: "cos",  # type: ignore[attr-defined]
    math.cosh: "cosh",
    torch._sym_cosh: "cosh",  # type: ignore[attr-defined]
    math.sin: "sin",
    torch._sym_sin: "sin",  # type: ignore[attr-defined]
    math.sinh: "sinh",
    torch._sym_sinh: "sinh",  # type: ignore[attr-defined]
    math.tan: "tan",
    torch._sym_tan: "tan",  # type: ignore[attr-defined]
    math.tanh: "tanh",
    torch._sym_tanh: "tanh",  # type: ignore[attr-defined]
    math.asin: "asin",
    torch._sym_asin: "asin",  # type: ignore[attr-defined]
    math.acos: "acos",
    torch._sym_acos: "acos",  # type: ignore[attr-defined]
    math.atan: "atan",
    torch._sym_atan: "atan",  # type: ignore[attr-defined]
    _aten.sym_size.int: "size",
    _aten.sym_stride.int: "stride",
    _aten.sym_numel.default: "numel",
    _aten.sym_storage_offset.default: "storage_offset",
    _aten._assert_scalar.default: "assert",
}

# what guards call by a name of their own: see SYMPY_INTERP in torch/fx/experimental/symbolic_shapes.py
FUNCTIONS: Final[dict[str, str]] = {
    "IsNonOverlappingAndDenseIndicator": "dense",
    "cast_symbool_to_symint_guardless": "int",
}
