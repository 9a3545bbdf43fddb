"""Buffers that a model replaces by other tensors: ``self.name = new``.

torch.export adds copies into them to the end of the graph, for the module that it is given and for no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.export.graph_signature import InputKind
from torch.nn.modules.module import register_module_buffer_registration_hook

from torchgil.forward._unsupported import refuse

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["assigned_buffers", "inner_assignments", "refuse_lost"]

# what fx calls a node that was added to a graph, where a traced one is `copy_` or `copy__1`
_ADDED_COPY: Final = re.compile(r"copy__default(_\d+)?")


@contextmanager
def inner_assignments(model: nn.Module) -> Iterator[set[str]]:
    """The names of the buffers that modules inside the model replace by other tensors in the block.

    torch.export writes such values back for the module that it is given, and forgets those of others.
    """
    inner: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        inner.setdefault(module, []).append(path)
    inner.pop(model)
    assigned: set[str] = set()

    def note(module: nn.Module, name: str, value: Any) -> None:
        if module in inner and value is not vars(module)["_buffers"].get(name):  # not `self.name += 1`
            assigned.update(f"{path}.{name}" for path in inner[module])

    handle = register_module_buffer_registration_hook(note)
    try:
        yield assigned
    finally:
        handle.remove()


def refuse_lost(program: ExportedProgram, assigned: set[str]) -> None:
    """Refuse a program that reads what is assigned, by `inner_assignments`: each call would read the first.

    Raises:
        NotImplementedError: It does; the message names the buffer.
    """
    specs = program.graph_signature.input_specs
    for node, spec in zip(program.graph.find_nodes(op="placeholder"), specs, strict=True):
        if spec.kind is InputKind.BUFFER and spec.target in assigned and node.users:
            refuse(
                f"it assigns to the buffer {spec.target!r} of an inner module, which torch.export leaves out",
                "write values (copy_, index_copy_), or assign to a buffer of the outermost module",
            )


def assigned_buffers(program: ExportedProgram) -> dict[Node, str]:
    """The copies into buffers that torch.export adds to the end of a graph, one for each ``self.name = new``.

    The model still had the old tensors when it returned its results and when it assigned the others, so what
    is copied, and what is returned, must not be read after the first of these copies.
    """
    names = {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.BUFFER
    }
    found: dict[Node, str] = {}
    for node in reversed([node for node in program.graph.nodes if node.op != "output"]):
        if node.target is not torch.ops.aten.copy_.default or not _ADDED_COPY.fullmatch(node.name):
            break
        name = names.get(str(node.args[0]))
        if node.users or len(node.args) != 2 or name is None or name in found.values():
            break
        if not _written_in_place(*node.args):  # `self.name += x` is an assignment, too
            found[node] = name
    return found


def _written_in_place(buffer: Any, value: Any) -> bool:
    """Whether `value` is what operators that write to `buffer` returned."""
    while value is not buffer:
        schema = getattr(getattr(value, "target", None), "_schema", None)
        alias = schema.returns[0].alias_info if schema is not None and len(schema.returns) == 1 else None
        if alias is None or not alias.is_write or not value.args:
            return False
        value = value.args[0]
    return True
