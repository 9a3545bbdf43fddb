"""A Python thread that notes every millisecond in which it gets the GIL."""

from __future__ import annotations

import threading
import time
from types import TracebackType

__all__ = ["Monitor", "idle_ticks_per_second"]

INTERVAL_S = 0.001


class Monitor:
    """Ticks once a millisecond for as long as it gets the GIL.

    It stands for everything else a program has to do in Python: the progress bar,
    the server, the next batch. While another thread keeps the GIL it cannot tick.

    Attributes:
        ticks_ns: When it had the GIL, in nanoseconds of CLOCK_MONOTONIC.
    """

    def __init__(self) -> None:
        self.ticks_ns: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torchgil-demo-monitor", daemon=True)

    def _run(self) -> None:
        # time.sleep and not Event.wait: one release and one reacquire per tick, nothing else.
        while not self._stop.is_set():
            self.ticks_ns.append(time.monotonic_ns())
            time.sleep(INTERVAL_S)

    def __enter__(self) -> Monitor:
        self._thread.start()
        while not self.ticks_ns:  # measured from its first tick on, not while the thread starts
            time.sleep(INTERVAL_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, begin_ns: int, end_ns: int) -> list[int]:
        """The ticks within a span of time."""
        return [tick for tick in self.ticks_ns if begin_ns <= tick <= end_ns]

    def rate(self, begin_ns: int, end_ns: int) -> float:
        """Ticks per second within a span of time."""
        return len(self.between(begin_ns, end_ns)) / ((end_ns - begin_ns) * 1e-9)


def idle_ticks_per_second(seconds: float = 0.1) -> float:
    """What the monitor reaches where nobody keeps the GIL from it: under 1000, sleeping takes longer."""
    with Monitor() as monitor:
        begin = time.monotonic_ns()
        time.sleep(seconds)
        end = time.monotonic_ns()
    return monitor.rate(begin, end)
