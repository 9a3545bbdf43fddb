"""The ways of serving one model that `torchgil compare` sets side by side."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Contender", "contenders"]


@dataclass(frozen=True)
class Contender:
    """One configuration.

    Attributes:
        kind: "single" (a loop), "threads", "processes" or "shared" (processes, weights in shared memory).
        workers: Threads or processes.
        intra_op_threads: Threads one op may use in each.
        nogil: The model is compiled by `torchgil.nogil`.
        asyncio: Requests are awaited on an event loop.
        batching: Requests pass through a `Batcher`.
    """

    kind: str
    workers: int = 1
    intra_op_threads: int = 1
    nogil: bool = False
    asyncio: bool = False
    batching: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        threads = f"{self.workers} x {self.intra_op_threads} threads"
        what = {
            "single": f"1 thread, {self.intra_op_threads} intra-op",
            "threads": threads,
            "processes": f"{self.workers} processes",
            "shared": f"{self.workers} processes, shared weights",
        }[self.kind]
        extras = [word for word in ("nogil", "asyncio", "batching") if getattr(self, word)]
        return ", ".join([what, *(extras or (["eager"] if self.kind == "threads" else []))])


def contenders(workers: int, cores: int, *, quick: bool) -> list[Contender]:
    """What to compare on `cores` cores with up to `workers` workers.

    Example:
        >>> [c.name for c in contenders(2, 2, quick=True)][:3]
        ['1 thread, 1 intra-op', '2 x 1 threads, eager', '2 x 1 threads, nogil']
    """
    share = max(1, cores // workers)
    rows = [
        Contender("single", 1, share),
        Contender("threads", workers, share),
        Contender("threads", workers, share, nogil=True),
        Contender("processes", workers, share),
        Contender("shared", workers, share),
        Contender("threads", workers, share, nogil=True, asyncio=True),
        Contender("threads", workers, share, batching=True),
        Contender("threads", workers, share, nogil=True, batching=True),
    ]
    if not quick:
        grid = [(w, n) for w in sorted({1, workers, 2 * workers}) for n in sorted({1, share, cores})]
        rows += [Contender("single", 1, cores)] if cores != share else []
        rows += [Contender("threads", w, n, nogil=True) for w, n in grid if (w, n) != (workers, share)]
    return rows
