"""The monitor: which share of the time the GIL is held, and by whom, in a program that runs for weeks.

One native thread looks, without ever asking for the GIL, at who holds it (csrc/gil/watch/monitor.h).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, starmap

from torchgil._checks import number
from torchgil._formatting import duration, one_line
from torchgil._garbage import COLLECTION_MEND
from torchgil._gil_half import C
from torchgil.watching import _thread_life as thread_life
from torchgil.watching._background import Background, changing

__all__ = ["GilMonitor", "MonitorStats"]

ENDED = "(ended)"  # the name of threads that have none any more, and had none while anybody could ask
OTHER = "(other)"  # of those that have held the GIL least, where many come and go
_NAMES = 100
_WORTH_MENDING = 0.02  # of the time in collections


@dataclass(frozen=True, slots=True)
class MonitorStats:
    """Which share of a stretch of time the GIL was held, estimated from looks at random moments.

    A share is a count of looks over all looks. There is one look in each interval of the time, at a random
    moment: so a share is right on average, and its standard error at most that of independent looks.

    Attributes:
        held_share: Share of the time that any thread held the GIL, from 0 to 1; nan without a look.
        threads: The same by thread, the greatest first, by the name that each thread has now, or had when it
            ended. "(ended)" are threads that ``threading`` did not start and that have ended. "(in a
            sub-interpreter)" are those that held it there. From Python 3.12 on they count as "(ended)" where
            the sub-interpreter shares the main one's GIL, and not at all where it has its own. Of more than
            100 names those with the smallest shares are summed up as "(other)".
        looks: How many looks these shares are made of.
        held_looks: How many of them found the GIL held, by thread.
        seconds: Length of the stretch.
        since: When it began, as ``time.time()`` has it.
        collecting_share: Share of the time that the GIL was held amid a garbage collection, of held_share.
        collecting_threads: The same by the thread that collected.
        collecting_looks: How many looks found a thread so.
    """

    held_share: float
    threads: dict[str, float]
    looks: int
    held_looks: dict[str, int]
    seconds: float
    since: float
    collecting_share: float = 0.0
    collecting_threads: dict[str, float] = field(default_factory=dict)
    collecting_looks: dict[str, int] = field(default_factory=dict)

    @property
    def standard_error(self) -> float:
        """Of `held_share`, at most."""
        return self.error_of(self.held_share)

    def error_of(self, share: float) -> float:
        """The standard error of one of these shares, at most: two thirds of the time it is off by no more.

        Never 0: it is reckoned with two more looks, one of which found it held, and one free.
        """
        if not self.looks:
            return math.nan
        p = (share * self.looks + 1) / (self.looks + 2)
        return math.sqrt(p * (1 - p) / self.looks)

    def __str__(self) -> str:
        """One line per thread, the greatest share first."""
        if not self.looks:
            return f"the GIL: no look in {duration(self.seconds)}"
        lines = [
            f"the GIL was held {100 * self.held_share:.1f} % (+- {100 * self.standard_error:.1f}) of "
            f"{duration(self.seconds)}, by {self.looks} looks"
        ]
        shares = [(one_line(name), share) for name, share in self.threads.items()]
        width = max((len(name) for name, _ in shares), default=0)
        lines += [f"  {name:{width}}  {100 * share:5.1f} %" for name, share in shares]
        if self.collecting_share:
            mend = f": {COLLECTION_MEND}" if self.collecting_share >= _WORTH_MENDING else ""
            who = ", ".join(map(one_line, self.collecting_threads))
            lines.append(f"garbage collections had {100 * self.collecting_share:.1f} % of it ({who}){mend}")
        return "\n".join(lines)


class GilMonitor(Background["_Session"]):
    """Counts who holds the GIL, in looks at random moments, for as long as the program runs.

    It costs a thread's wake-up per look and never asks for the GIL: nobody waits for it. What it says is a
    sampled share: for each release and each microsecond use `torchgil.trace`, for the line of a long hold
    `torchgil.Watchdog`.

    Start it with ``with``, or with ``start()`` and ``stop()``, as often as you like; each start counts anew.
    It stops by itself at interpreter exit. In the child of a fork it is stopped, and can be started again.

    Args:
        interval: Seconds between two looks, on average: one look in each interval, at a random moment of it.
        max_window: For so many seconds each look is kept, for `window`; 24 bytes a look.

    Raises:
        ValueError: interval is not from 0.0001 to 60 seconds, or max_window not from interval to 86400.

    >>> import torchgil
    >>> with torchgil.GilMonitor(interval=0.001) as monitor:
    ...     _ = torchgil.held.spin(0.2)
    >>> stats = monitor.stats()
    >>> stats.threads["MainThread"] > 0.5, stats.held_share > 0.5, stats.looks > 10
    (True, True, True)
    """

    def __init__(self, interval: float = 0.005, *, max_window: float = 300.0) -> None:
        self.interval = _checked("interval", interval, 1e-4, 60)
        self.max_window = _checked("max_window", max_window, self.interval, 86400)

    def _begin(self) -> _Session:
        return _Session(self.interval, self.max_window)

    def stats(self) -> MonitorStats:
        """The shares since the start, or the last `reset`; those of the last run where it is stopped."""
        with changing():
            counted = self._of_this_process()
            return counted.stats() if counted else _NOTHING

    def window(self, seconds: float) -> MonitorStats:
        """The shares of the last `seconds`, or of the time since start or reset where that is shorter.

        Args:
            seconds: At most `max_window`.

        Returns:
            As `stats`, of that time alone.

        Raises:
            ValueError: seconds is not above 0 and at most max_window.
        """
        seconds = _checked("window: seconds", seconds, math.ulp(0.0), self.max_window)
        with changing():
            counted = self._of_this_process()
            return counted.window(seconds) if counted else _NOTHING

    def reset(self) -> None:
        """Begins to count anew."""
        with changing():
            counted = self._of_this_process()
            if counted:
                counted.reset()

    def _of_this_process(self) -> _Session | None:
        if self._last is not None and self._last.pid != os.getpid():
            self._last = None  # in a fork's child: it is the parent's
        return self._last


class _Session:
    """A run of a monitor: the native one, and what was taken from it so far."""

    def __init__(self, interval: float, max_window: float) -> None:
        self.pid = os.getpid()
        # Since when, and what was taken from the native one since then; the first may be a sum of several.
        self._counted: tuple[float, list[_Looks]] = time.time(), []
        self._summing = False
        # Last: where Ctrl-C ends this, nothing refers to it yet, and so it ends, too.
        self._monitor = C.Monitor(
            interval, math.ceil(max_window / interval), threads=getattr(threading, "_active", {})
        )

    def stats(self) -> MonitorStats:
        # A signal handler or a finalizer may do the same amid this, or reset it, or raise. So what is taken
        # is kept by the same call into C that takes it, and a reset leaves us a list that is nobody else's.
        outermost = not self._summing
        try:
            self._summing = True
            since, taken = self._counted
            taken.extend(starmap(self._monitor.take, [()]))
            seen = tuple(taken)
            total, held, collecting = _sums(seen)
            if outermost:
                taken[: len(seen)] = [total]
        finally:
            if outermost:
                self._summing = False
        return _stats(total[0], held, collecting, total[1], since)

    def window(self, seconds: float) -> MonitorStats:
        looks, covered, held = self._monitor.last(seconds)
        by_name = _by_name((name, looks) for name, looks, _ in held)
        collecting = _by_name((name, looks) for name, _, looks in held)
        return _stats(looks, by_name, collecting, covered, time.time() - covered)

    def reset(self) -> None:
        self._monitor.reset()
        self._counted = time.time(), []

    def listen(self) -> None:
        thread_life.listen(self._monitor)

    def stop(self) -> None:
        self._monitor.stop()
        thread_life.leave(self._monitor)


# The number of looks, the seconds that they are from, and by thread how many found it so, and collecting.
_Looks = tuple[int, float, list[tuple[str | None, int, int]]]


def _sums(taken: Sequence[_Looks]) -> tuple[_Looks, Counter[str], Counter[str]]:
    """Of all, under so many names at most; by thread again, those that held it and those that collected."""
    by_thread = list(chain.from_iterable(each[2] for each in taken))
    held = _by_name((name, looks) for name, looks, _ in by_thread)
    collecting = _by_name((name, looks) for name, _, looks in by_thread)
    while len(held) > _NAMES:
        name, _ = min(held.items(), key=lambda item: (item[0] == OTHER, item[1]))
        held[OTHER] += held.pop(name)
        collecting[OTHER] += collecting.pop(name, 0)
    names: list[tuple[str | None, int, int]] = [(name, n, collecting[name]) for name, n in held.items()]
    return (sum(each[0] for each in taken), sum(each[1] for each in taken), names), held, collecting


def _by_name(looks: Iterable[tuple[str | None, int]]) -> Counter[str]:
    names: Counter[str] = Counter()
    for name, count in looks:
        names[ENDED if name is None else name] += count
    return +names  # without those of none


def _stats(
    looks: int, held: Counter[str], collecting: Counter[str], seconds: float, since: float
) -> MonitorStats:
    def shares(of: Counter[str]) -> dict[str, float]:
        return {name: count / looks for name, count in of.most_common()}

    collecting = +collecting
    return MonitorStats(
        held_share=held.total() / looks if looks else math.nan,
        threads=shares(held),
        looks=looks,
        held_looks=dict(held.most_common()),
        seconds=seconds,
        since=since,
        collecting_share=collecting.total() / looks if looks else math.nan,
        collecting_threads=shares(collecting),
        collecting_looks=dict(collecting.most_common()),
    )


_NOTHING = MonitorStats(math.nan, {}, 0, {}, 0.0, 0.0)


def _checked(name: str, value: float, low: float, high: float) -> float:
    wanted = f"from {low:g} to {high:g} seconds"
    return number(f"GilMonitor: {name}", value, low, high, wanted=wanted, kind=ValueError)
