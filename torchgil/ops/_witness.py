"""What a kernel itself saw of the GIL: the proof by state.

>>> import torch, torchgil
>>> from torchgil.ops import witness
>>> with witness() as records:
...     _ = torchgil.released.add(torch.ones(1), torch.ones(1))
...     _ = torchgil.held.add(torch.ones(1), torch.ones(1))
>>> [(record.op, record.held_gil) for record in records]
[('add', False), ('add', True)]
"""

from __future__ import annotations

from dataclasses import dataclass

from torchgil._copies import NotCopied
from torchgil._torch_half import C

__all__ = ["KernelRecord", "witness"]


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """One run of one of torchgil's kernels.

    Attributes:
        op: Name of the op, without its namespace.
        held_gil: Whether the kernel's thread held the GIL when it started.
        begin_ns: Start, in nanoseconds of CLOCK_MONOTONIC.
        end_ns: End, likewise.
        thread_id: The operating system's id of the thread (threading.get_native_id).
    """

    op: str
    held_gil: bool
    begin_ns: int
    end_ns: int
    thread_id: int


class witness(NotCopied):  # noqa: N801  (used as a function)
    """Records each run of torchgil's kernels on every thread, as the kernel saw it.

    For tests and demonstrations: while it records, each kernel takes a lock. The
    list fills when the block ends, in the order in which the kernels ended.

    Returns:
        A context manager; the list that the records go into is its value.

    Raises:
        RuntimeError: As the block begins: a witness is recording already.
    """

    def __enter__(self) -> list[KernelRecord]:
        if not C.witness_start():
            raise RuntimeError("a torchgil.ops.witness() is recording already; only one can at a time")
        self._records: list[KernelRecord] = []
        return self._records

    def __exit__(self, *_: object) -> None:
        self._records += [KernelRecord(*fields) for fields in C.witness_stop()]
