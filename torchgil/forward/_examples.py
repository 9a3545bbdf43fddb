"""Example arguments that share no memory: torch.export takes two that are one tensor for one argument.

Every later call would then compute with one of the two, and so where an example is a weight: the graph would
read the argument for the weight. So what shares memory is copied before the export, and a program that was
exported from such examples is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch.export.graph_signature import InputKind

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["memory", "merged_arguments", "overlap", "separate"]

# torch marks dimensions as dynamic on the tensor itself (torch._dynamo.mark_dynamic).
_MARKS = "_dynamo_"


def separate(arguments: Any, tensors: Iterable[torch.Tensor]) -> Any:
    """The same structure, where each tensor has memory of its own.

    Args:
        arguments: Tensors and other values in any structure that pytree knows.
        tensors: The model's own, which no argument may share memory with either.

    Returns:
        The structure with copies in the place of tensors that share memory with an earlier one or with one of
        `tensors`. A copy has the values, sizes, strides, dtype, device and `requires_grad` of its original.
    """
    taken = [span for tensor in tensors for span in memory(tensor)]
    leaves, spec = pytree.tree_flatten(arguments)
    copied = False
    for place, value in enumerate(leaves):
        if isinstance(value, torch.Tensor):
            spans = memory(value)
            if any(overlap(a, b) for a in spans for b in taken):
                leaves[place], copied = _copy(value), True
            taken.extend(spans)
    return pytree.tree_unflatten(leaves, spec) if copied else arguments


def merged_arguments(program: ExportedProgram) -> str:
    """The arguments, and the weight, that torch.export took for one; "" where there are none.

    All that it leaves in the graph is that nothing reads all but one of them, and that may be so of others.
    What tells are the examples that a program keeps. Which of them were one tensor survives saving; that one
    was a weight does not, but a parameter that nothing reads still has its values. Of buffers that says too
    little.
    """
    if program.example_inputs is None:
        return ""
    given: list[tuple[str, Any, bool]] = []
    read_weights: set[str] = set()
    examples = iter(pytree.tree_leaves(program.example_inputs))
    nodes = program.graph.find_nodes(op="placeholder")
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            given.append((f"the argument '{node.name}'", next(examples, None), bool(node.users)))
        elif node.users:
            read_weights.add(str(spec.target))
    weights = [
        (f"the weight '{name}'", weight, name in read_weights)
        for name, weight in {**program.constants, **program.state_dict}.items()
    ]
    groups: dict[int, list[tuple[str, bool]]] = {}  # by tensor
    for name, value, read in (*given, *weights):
        if isinstance(value, torch.Tensor):
            groups.setdefault(id(value), []).append((name, read))
    for _, value, _ in given:
        group = groups.get(id(value), [])
        if len(group) > 1 and sum(read for _, read in group) == 1:
            return " and ".join(name for name, _ in group)
    for name, value, read in given:
        for weight_name, weight, weight_read in weights:
            if read and not weight_read and _is_copy(value, weight):
                return f"{name} and {weight_name}"
    return ""


def _is_copy(example: Any, weight: Any) -> bool:
    """Whether an example was this parameter when the program was saved, and is no tensor of like values."""
    return (
        isinstance(example, torch.nn.Parameter)
        and isinstance(weight, torch.nn.Parameter)
        and (example.dtype, example.shape, example.device) == (weight.dtype, weight.shape, weight.device)
        and torch.equal(example, weight)
    )


def memory(tensor: torch.Tensor) -> list[tuple[torch.device, int, int]]:
    """The spans of memory of a tensor's storages; of one without any, its own number stands for them."""
    if tensor.layout is torch.sparse_coo:
        return memory(tensor._indices()) + memory(tensor._values())
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [*memory(tensor.crow_indices()), *memory(tensor.col_indices()), *memory(tensor.values())]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [*memory(tensor.ccol_indices()), *memory(tensor.row_indices()), *memory(tensor.values())]
    try:
        storage = tensor.untyped_storage()
        start, size = storage.data_ptr(), storage.nbytes()
        number: int = storage._cdata
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
    ):  # oneDNN's, subclasses that wrap others, fake tensors
        start, size, number = 0, 0, id(tensor)
    if start and size:
        return [(tensor.device, start, start + size)]
    # Nothing is there: on the meta device, or of no element. What counts is whether it is the same one.
    return [(torch.device("meta"), number, number + 1)]


def overlap(a: tuple[torch.device, int, int], b: tuple[torch.device, int, int]) -> bool:
    """Whether two spans of memory have a byte in common."""
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and _is_plain(tensor):
            copied = _copy_of_storage(tensor)
        else:
            copied = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        copied = torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
    elif tensor.requires_grad:
        copied.requires_grad_()
    for name, value in vars(tensor).items():
        if name.startswith(_MARKS):
            setattr(copied, name, value)
    return copied


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _copy_of_storage(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the strides as they are, those of an expanded tensor too: `clone` would make it dense."""
    if not tensor.numel():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    flat = tensor.detach().as_strided((extent,), (1,), tensor.storage_offset()).clone()
    copied = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return copied.set_(flat.untyped_storage(), 0, tensor.size(), tensor.stride())
