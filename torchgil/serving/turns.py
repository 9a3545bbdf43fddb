"""The turns that a batcher's workers take on its executor, and those that it loses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

from torchgil.serving.requests import Request

__all__ = ["Turn", "Turns"]

_log = logging.getLogger("torchgil")


class Turn:
    """One worker's turn: it serves batches until there are none, or another collects the next."""

    __slots__ = ("batch", "ident")

    def __init__(self) -> None:
        self.batch: list[Request] = []
        self.ident = 0  # of its thread, once it runs


class Turns:
    """At most `concurrency` turns, of which at most one is the collector: it forms the next batch.

    Methods are called under the batcher's lock, but for `start`: the executor calls back.

    Args:
        executor: Where turns run.
        concurrency: Most turns at once.
        work: `work(turn)` is a turn.
        lost: `lost(turn, why)` is called where the executor will not run it any more; after each turn, too.
    """

    def __init__(
        self,
        executor: Executor,
        concurrency: int,
        work: Callable[[Turn], None],
        lost: Callable[[Turn, str], None],
    ) -> None:
        self._executor = executor
        self._concurrency = concurrency
        self._work = work
        self._lost = lost
        self._turns: set[Turn] = set()
        self._collector: Turn | None = None

    def __contains__(self, turn: Turn) -> bool:
        return turn in self._turns

    def __len__(self) -> int:
        return len(self._turns)

    def appoint(self) -> Turn | None:
        """A new collector to `start`, where there is none and there may be one more turn."""
        if self._collector is not None or len(self._turns) >= self._concurrency:
            return None
        self._collector = turn = Turn()
        self._turns.add(turn)
        return turn

    def collects(self, turn: Turn) -> bool:
        """Whether `turn` is the collector, or has become it."""
        if self._collector is None:
            self._collector = turn
        return self._collector is turn

    def collected(self, turn: Turn, batch: list[Request]) -> None:
        """The collector `turn` has its batch."""
        turn.batch = batch
        self._collector = None

    def leave(self, turn: Turn) -> None:
        """The turn is over."""
        self._turns.discard(turn)
        if self._collector is turn:
            self._collector = None

    def requests(self) -> Iterator[Request]:
        """What is in batches, ended or not."""
        return (request for turn in self._turns for request in turn.batch)

    def is_mine(self) -> bool:
        """Whether the calling thread is in a turn, in a done-callback or in the batched function."""
        return any(turn.ident == threading.get_ident() for turn in self._turns)

    def start(self, turn: Turn | None) -> None:
        """Hand `turn` to the executor."""
        if turn is None:
            return
        try:
            future = self._executor.submit(self._work, turn)
        except BaseException as error:  # the executor, or the interpreter, is shut down; it is full; Ctrl-C
            self._lost(turn, str(error) or type(error).__name__)
            if not isinstance(error, Exception):
                raise
        else:
            future.add_done_callback(lambda future: self._over(turn, future))

    def _over(self, turn: Turn, future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:  # a fault of ours
            _log.error("torchgil's batcher failed", exc_info=error)
        self._lost(turn, "it dropped the batch's turn" if error is None else f"it failed with {error!r}")
