"""Which tensors a program writes to, and how they lie in memory: what each session gets of its own.

Tensors that share memory in the model share it in a session. So what is written takes with it whatever lies
in the same memory, and all of that becomes one block of bytes; the rest is shared by all sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from torchgil.forward._examples import memory, overlap
from torchgil.forward._unsupported import refuse
from torchgil.forward._weights import weight_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Layout", "Member", "described", "lay_out", "with_aliases"]

# A block begins at such an address, as torch's own memory does: the same elements are aligned as in the
# model, on which the bits of some kernels depend.
_ALIGNMENT: Final = 64


class Member(NamedTuple):
    """A tensor of the state, as the C++ side takes it; `offset` is in bytes from the block's begin."""

    name: str
    block: int
    offset: int
    dtype: torch.dtype
    sizes: list[int]
    strides: list[int]
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The state of a program.

    Attributes:
        targets: The tensors that are written, by their names in the program.
        members: The same ones, by their names for users, and where each is.
        blocks: Their memory with its first contents, as bytes. Never written.
    """

    targets: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    blocks: tuple[torch.Tensor, ...] = ()


class _Span(NamedTuple):
    """From a tensor's first byte to its last."""

    device: str
    low: int
    high: int
    name: str


def described(tensor: torch.Tensor) -> str:
    """Its dtype and shape: ``float32[2, 3]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def with_aliases(
    program: ExportedProgram,
    written: Iterable[str],
    read: Iterable[str],
    parameters: Iterable[str],
    assigned: Iterable[str] = (),
) -> tuple[str, ...]:
    """The names of the tensors that are written, and of those that share memory with one of them.

    Args:
        program: The exported program.
        written: The buffers and constants that the program writes to.
        read: All tensors that it reads or writes to.
        parameters: Those which are parameters: a session has none of its own.
        assigned: The buffers that the model replaces by other tensors.

    Raises:
        NotImplementedError: A tensor that is written has no plain memory, or shares it with a parameter; one
            that is assigned shares it with any other.
    """
    chosen, fixed, replaced = set(written), set(parameters), set(assigned)
    tensors = {name: weight_of(program, name) for name in dict.fromkeys((*read, *chosen))}
    for name in chosen:
        if not _is_plain(tensors[name]):
            refuse(
                f"it writes to {name!r}, which is sparse, quantized, conjugated, on meta or no plain tensor",
                "keep the state in plain torch.Tensors",
            )
    for group in _groups(tensors):
        names = {span.name for span in group}
        if written_here := sorted(names & chosen):
            if shared := sorted(names & fixed):
                refuse(
                    f"it writes to {written_here[0]!r}, which shares memory with the parameter {shared[0]!r}",
                    "give it memory of its own, by clone()",
                )
            if len(names) > 1 and (moved := sorted(names & replaced)):
                refuse(
                    f"it replaces {moved[0]!r}, which shares memory with {min(names - {moved[0]})!r}",
                    "write values (copy_), or give it memory of its own, by clone()",
                )
            chosen |= names
    held = [(name, span) for name in sorted(chosen) for span in memory(tensors[name])]
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            for own in memory(tensor):
                if shared := [other for other, span in held if overlap(own, span)]:
                    refuse(
                        f"it writes to {shared[0]!r}, which shares memory with {name!r}, and that is sparse, "
                        "quantized, conjugated or no plain tensor",
                        "give one of them memory of its own, by clone()",
                    )
    return tuple(name for name in tensors if name in chosen)


def lay_out(program: ExportedProgram, targets: Sequence[str]) -> Layout:
    """A layout for these tensors of a program, with their values as they are now.

    Raises:
        NotImplementedError: Two of them share memory at addresses that no one block can have.
    """
    tensors = {name: weight_of(program, name) for name in targets}
    shown = _shown(program, tensors)
    blocks: list[torch.Tensor] = []
    found: dict[str, Member] = {}
    with torch.inference_mode(False), torch.no_grad():
        for group in _groups(tensors):
            low = group[0].low - group[0].low % _ALIGNMENT
            device = tensors[group[0].name].device
            block = torch.zeros(max(span.high for span in group) - low, dtype=torch.uint8, device=device)
            for span in group:
                tensor, offset = tensors[span.name], span.low - low
                if offset % tensor.itemsize:
                    refuse(f"{span.name!r} is not aligned", "give it memory of its own, by clone()")
                block[offset : span.high - low] = _bytes(tensor, span.high - span.low)
                found[span.name] = Member(
                    shown[span.name],
                    len(blocks),
                    offset,
                    tensor.dtype,
                    list(tensor.shape),
                    list(tensor.stride()),
                    tensor.requires_grad,
                )
            blocks.append(block)
    return Layout(tuple(targets), tuple(found[name] for name in targets), tuple(blocks))


def _shown(program: ExportedProgram, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What a user calls each: a lifted constant that is a buffer as well has the buffer's name.

    A cache of transformers is one: the module registers its tensors as buffers and reads them from elsewhere.
    """

    def place(tensor: torch.Tensor) -> Any:
        return tensor.data_ptr(), str(tensor.device), tensor.dtype, tensor.shape, tensor.stride()

    buffers = program.graph_signature.inputs_to_buffers.values()
    free = {place(weight_of(program, name)): name for name in buffers if name not in tensors}
    return {
        name: name if name in buffers or not tensor.numel() else free.pop(place(tensor), name)
        for name, tensor in tensors.items()
    }


def _groups(tensors: Mapping[str, torch.Tensor]) -> list[list[_Span]]:
    """The tensors by the memory that they share, each group in the order of addresses."""
    groups: list[list[_Span]] = []
    high = 0
    for span in sorted(_span(name, tensor) for name, tensor in tensors.items() if _is_plain(tensor)):
        if groups and span.device == groups[-1][0].device and span.low < high:
            groups[-1].append(span)
            high = max(high, span.high)
        else:
            groups.append([span])
            high = span.high
    return groups


def _span(name: str, tensor: torch.Tensor) -> _Span:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return _Span(
        str(tensor.device), start, start + (last + 1) * tensor.itemsize if tensor.numel() else start, name
    )


def _bytes(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """The memory from a tensor's first element to its last."""
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    if not count:
        return flat
    return flat.set_(tensor.untyped_storage(), tensor.storage_offset() * tensor.itemsize, (count,), (1,))


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
    )
