"""Which extension a call ran in, as far as that can be found honestly.

A callable says which module it is from, and a module that is a shared object says where that lies. A source
line says which callables it calls; where several could be meant, or one cannot be looked up, nothing is said.
"""

from __future__ import annotations

import ast
import functools
import linecache
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import PurePath
from types import ModuleType
from typing import Any

__all__ = ["Extension", "of_callable", "of_line", "of_op"]

_MEND = "py::call_guard<py::gil_scoped_release>(), see docs/writing_ops.md"
_TORCHS_OWN = ("aten", "prim", "prims", "c10d", "inductor", "quantized", "mkldnn", "mkl", "onednn")


@dataclass(frozen=True, slots=True)
class Extension:
    """A shared object that a call ran in.

    Attributes:
        path: Where it lies.
        how: How that was found.
    """

    path: str
    how: str

    def __str__(self) -> str:
        return f"in the extension {self.path} ({self.how}); where that is yours, release with {_MEND}"


def of_callable(fn: Any) -> Extension | None:
    """The extension that a callable is from.

    Returns:
        None where it is Python, built into the interpreter or its library, or does not say.

    >>> import torch, torchgil
    >>> of_callable(torchgil.held.spin).how
    'the module of torchgil._torch.held.spin'
    >>> of_callable(sorted) is None, of_callable(lambda: None) is None
    (True, True)
    """
    try:
        return _of_module(fn)
    except Exception:  # what an object of somebody's own class is asked for may be code that raises
        return None


def _of_module(fn: Any) -> Extension | None:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__module__", None)
    if not isinstance(name, str):  # a method of a C type
        owner = getattr(fn, "__objclass__", None) or type(getattr(fn, "__self__", None))
        name = owner.__module__
    path = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(path, str) or not path.endswith(tuple(EXTENSION_SUFFIXES)):
        return None
    if "lib-dynload" in PurePath(path).parts:
        return None  # Python's own
    return Extension(path, f"the module of {name}.{getattr(fn, '__name__', '?')}")


def of_line(filename: str, lineno: int) -> Extension | None:
    """The extension that a line calls into: the innermost Python line of a thread that is in C.

    Returns:
        None unless one call is all that the line does, of a name that its module has, to an extension.
    """
    module = _module_of(filename)
    if module is None:
        return None
    called, rebound = _parsed(filename)
    if lineno not in called:
        return None
    found = _look_up(called[lineno], module, rebound)
    return None if found is None else of_callable(found)


# Not "autograd::engine::evaluate_function: MulBackward0", nor what a program calls a block of its own.
_OP = re.compile(r"(?P<namespace>\w+)::\w+(\.\w+)?")


def of_op(name: str) -> str | None:
    """Where an op's kernel is from, as torch's dispatcher says, and the mend.

    Returns:
        None where it is torch's own, or no op.

    >>> import torchgil
    >>> of_op("aten::add") is None
    True
    """
    op = _OP.fullmatch(name)
    torch = sys.modules.get("torch._C")  # or there are no ops
    dump = getattr(torch, "_dispatch_dump", None)  # private, and without it nothing is said
    if op is None or op["namespace"] in _TORCHS_OWN or dump is None:
        return None
    lines = dump(name).splitlines()
    # The kernel that runs for plain CPU tensors, or for any; else where the op is defined.
    for key in ("CPU", "CompositeExplicitAutograd[alias]", "CompositeImplicitAutograd[alias]", "debug"):
        for line in lines:
            if line.startswith(f"{key}: registered at "):
                where = line.split(" registered at ")[1].split(" :: ")[0]
                if where.rpartition(":")[0].endswith(".py"):
                    return f"its kernel is Python, registered at {where} (the dispatcher says)"
                return (
                    f"its kernel is registered at {where} (the dispatcher says); where that is yours, bind "
                    f"what calls it with {_MEND}"
                )
    return None


_CODE_TOO = (ast.BinOp, ast.Compare, ast.Subscript, ast.UnaryOp, ast.For, ast.ListComp, ast.GeneratorExp)


# Parsing holds the GIL, some 10 ms for so many characters of dense code.
_PIECE = 16_000
_GOES_ON = (" ", "\t", "\n", "#", ")", "]", "}", "else", "elif", "except", "finally")


@functools.lru_cache(maxsize=32)
def _parsed(filename: str) -> tuple[dict[int, ast.expr], frozenset[str]]:
    """What each line that does nothing but one call calls, and the names bound by more than imports and defs.

    Nothing, where the file is no Python or one statement of it takes too long to parse.
    """
    called: dict[int, ast.expr] = {}
    rebound: set[str] = set()
    for first, tree in _statements(linecache.getlines(filename)):
        if tree is None:
            return {}, frozenset()
        code_too: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                rebound.add(node.arg)
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                rebound.add(node.id)
            if isinstance(node, ast.Call):
                line = first + node.lineno
                if line in called:
                    code_too.add(line)
                called[line] = node.func
            elif isinstance(node, _CODE_TOO):
                code_too.add(first + node.lineno)
        for line in code_too:
            called.pop(line, None)
    return called, frozenset(rebound)


def _statements(lines: list[str]) -> Iterator[tuple[int, ast.Module | None]]:
    """Trees of one or a few statements, with the number of lines before each; the last is None on failure.

    A piece ends before a line that looks as if it begins a statement. Within a string of several lines one
    may look so and begin none; the piece cannot be parsed then, and gets more lines.
    """
    begin, length = 0, 1
    while begin < len(lines):
        end = min(begin + length, len(lines))
        while end < len(lines) and lines[end].startswith(_GOES_ON):
            end += 1
        source = "".join(lines[begin:end])
        try:
            tree = ast.parse(source) if len(source) <= _PIECE else None
        except (SyntaxError, ValueError):
            if end < len(lines):
                length = 2 * (end - begin)
                continue
            tree = None
        yield begin, tree
        if tree is None:
            return
        begin, length = end, 1


def _module_of(filename: str) -> ModuleType | None:
    if not filename:
        return None
    modules = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    return next((m for m in modules if m.__dict__.get("__file__") == filename), None)


def _look_up(node: ast.expr, module: ModuleType, rebound: frozenset[str]) -> Any:
    """What a dotted name means in a module, without running anyone's code: attributes of modules alone."""
    if isinstance(node, ast.Name):
        return None if node.id in rebound else module.__dict__.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _look_up(node.value, module, rebound)
        if isinstance(owner, ModuleType):
            return owner.__dict__.get(node.attr)
    return None
