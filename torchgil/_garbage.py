"""Garbage collections that fell into a stretch of time, as numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from torchgil._formatting import duration

__all__ = ["COLLECTION_MEND", "NO_COLLECTIONS", "Collections", "collections"]

COLLECTION_MEND = (
    "gc.freeze() after loading leaves what was loaded out of later collections, and gc.collect() at a quiet "
    "moment does the work before a busy one"
)


@dataclass(frozen=True, slots=True)
class Collections:
    """Garbage collections in a stretch of time, each from when its thread begins it to when that ends it.

    A collection holds the GIL but for what it frees: a tensor's end releases it, and so may a finalizer.
    What is neither free nor held of wall_s is waiting for the GIL back.
    """

    count: int = 0
    wall_s: float = 0.0
    free_s: float = 0.0
    held_s: float = 0.0
    releases: int = 0
    longest_s: float = 0.0
    generation: int | None = None  # of the longest


NO_COLLECTIONS = Collections()


def collections(of: Collections) -> str:
    """How many garbage collections there were, and how long they took.

    >>> collections(Collections(count=1, wall_s=0.083, longest_s=0.083, generation=2))
    'a garbage collection of generation 2, 83.0 ms'
    """
    if of.count == 1:
        return f"a garbage collection of generation {of.generation}, {duration(of.wall_s)}"
    return (
        f"{of.count} garbage collections, {duration(of.wall_s)} in all, the longest {duration(of.longest_s)} "
        f"of generation {of.generation}"
    )
