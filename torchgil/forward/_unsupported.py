"""Errors that name the node, its source line and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = ["refuse", "source_line", "well_formed"]

_TORCH = str(Path(torch.__file__).parent)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n?\s*([^\n]*)')


def source_line(node: Node) -> str:
    """The user's line that made a node, as ``file.py:12: code``; empty where export kept none."""
    frames = [f for f in _FRAME.findall(node.meta.get("stack_trace") or "") if not f[0].startswith("<")]
    if not frames:
        return ""
    # torch.nn's own lines only where there is nothing of the user's
    filename, lineno, code = ([f for f in frames if not f[0].startswith(_TORCH)] or frames)[-1]
    return f"{filename}:{lineno}: {code}" if code else f"{filename}:{lineno}"


def refuse(what: str, instead: str, node: Node | None = None) -> NoReturn:
    """Raise the error for a graph the program cannot run.

    Args:
        what: What the graph, or the node, holds.
        instead: What the user can do.
        node: Where, if one node is to blame.

    Raises:
        NotImplementedError: Always.
    """
    if node is None:
        raise NotImplementedError(f"nogil cannot run this graph: {what}; {instead}")
    raise NotImplementedError(f"nogil cannot run {_place(node)}: {what}; {instead}")


class _MalformedError(ValueError):
    pass


@contextmanager
def well_formed(node: Node) -> Iterator[None]:
    """Whatever reading the node raises, but for a refusal, is a ValueError that names it."""
    try:
        yield
    except (NotImplementedError, _MalformedError):
        raise
    except Exception as error:  # what torch.export writes raises none of them
        raise _MalformedError(
            f"nogil cannot read {_place(node)}: {type(error).__name__}: {error}; torch.export does not write "
            "it so: was the graph changed by hand?"
        ) from error


def _place(node: Node) -> str:
    line = source_line(node)
    return f"node '{node.name}' ({line})" if line else f"node '{node.name}'"
