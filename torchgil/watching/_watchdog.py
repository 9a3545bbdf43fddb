"""The watchdog: says which line held the GIL too long, while the program runs.

Two native threads do it (csrc/gil/watch/prober.h). One looks, without the GIL, at
who holds it; where the same thread is met twice it lets the other knock, that
is, ask for the GIL as any thread would. Code that gives way by itself gives way
to the knock. A call that does not is caught the moment it ends: the interpreter
gives way right after it, with the call still the line its thread is in.
"""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from traceback import FrameSummary, StackSummary

from torchgil import _extension as extension
from torchgil import _html as html
from torchgil._checks import function, number, whole
from torchgil._extension import Extension
from torchgil._formatting import one_line
from torchgil._garbage import COLLECTION_MEND, NO_COLLECTIONS, Collections, collections
from torchgil._gil_half import C
from torchgil.watching import _thread_life as thread_life
from torchgil.watching._background import Background

__all__ = ["LongHold", "Watchdog", "WatchdogStats"]

_log = logging.getLogger("torchgil.watchdog")

# What the prober reports: duration, queued, thread's name and ident, exact, frames, and the collections in
# it: how many, their seconds, the longest one's, its generation.
_Report = tuple[float, float, str, int, bool, list[tuple[str, int, str]], tuple[int, float, float, int]]

_CALLBACK_PATIENCE_S = 5.0
_WORTH_SAYING = 0.1  # of a hold: less in collections is left to the field

# Whose files are not the user's own code.
_LIBRARIES = (
    "<frozen",
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")},
)


@dataclass(frozen=True, slots=True)
class LongHold:
    """One hold of the GIL over the threshold, and the Python line that caused it.

    Attributes:
        duration_s: For how long the thread was seen holding the GIL, in seconds. It may
            have held it longer: what lay before the first look is not counted.
        queued_s: How much of it the thread waited for a core, in seconds: the
            operating system had given them to other threads.
        thread_name: Name of the thread, as ``threading`` has it; for a thread that
            Python did not start, the operating system's name.
        ident: Its ``threading.Thread.ident``; 0 when it had ended already.
        filename: File of the innermost Python frame; "" when it is not known.
        lineno: Line in that file; 0 when it is not known.
        function: Name of the function that the line is in.
        stack: All its frames, outermost first, as ``traceback`` has them.
        exact: Whether nothing speaks against the thread being still where it gave way. False:
            other threads got the GIL in between, and then this one again or perhaps
            again, so that the line may be a later one than the culprit.
        collections: The garbage collections that fell into it, each of 0.1 ms at least, as far as they lie
            in duration_s: the line is then where one happened to start, and need not be the one at fault.

    Example:
        >>> import torchgil
        >>> with torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None) as watchdog:
        ...     _ = torchgil.held.spin(0.2)
        >>> [(hold.function, hold.thread_name) for hold in watchdog.holds]
        [('<module>', 'MainThread')]
    """

    duration_s: float
    queued_s: float
    thread_name: str
    ident: int
    filename: str
    lineno: int
    function: str
    stack: tuple[FrameSummary, ...]
    exact: bool
    collections: Collections = NO_COLLECTIONS

    @property
    def caller(self) -> FrameSummary | None:
        """The innermost frame outside the standard library and installed packages.

        None where the culprit's own line is that frame, or no frame is.
        """
        for frame in reversed(self.stack):
            if not frame.filename.startswith(_LIBRARIES):
                return None if frame is self.stack[-1] else frame
        return None

    @property
    def extension(self) -> Extension | None:
        """The shared object that the innermost line called into; None: another, or not known for certain."""
        return extension.of_line(self.filename, self.lineno) if self.exact else None

    def __str__(self) -> str:
        held = f"{one_line(self.thread_name)} held the GIL for {self.duration_s * 1e3:.1f} ms"
        if self.collections.wall_s >= _WORTH_SAYING * self.duration_s:
            held += f" ({collections(self.collections)})"
        if not self.stack:
            return f"{held}; it has no Python frame" + self._mend()
        at = "at" if self.exact else "at or before"
        caller = self.caller
        via = f", called from {caller.filename}:{caller.lineno} in {caller.name}" if caller else ""
        source = (caller or self.stack[-1]).line
        place = one_line(f"{self.filename}:{self.lineno} in {self.function}{via}")
        ran_in = self.extension
        return (
            f"{held} {at} {place}"
            + (f": {source}" if source else "")
            + (f"; it ran {ran_in}" if ran_in else "")
            + self._mend()
        )

    def _mend(self) -> str:
        return f"; {COLLECTION_MEND}" if self.collections.wall_s >= self.duration_s / 2 else ""

    def format(self) -> str:
        """The hold and the stack below it, as a traceback would print it."""
        return f"{self}\nStack (most recent call last):\n" + "".join(
            StackSummary.from_list(self.stack).format()
        )

    def _repr_html_(self) -> str:
        headline, _, stack = self.format().partition("\n")
        return html.page(
            html.paragraph(headline, strong=True), html.preformatted(stack) if self.stack else ""
        )


@dataclass(frozen=True, slots=True)
class WatchdogStats:
    """What a watchdog found in all the time it ran, also what it does not keep any more.

    Attributes:
        holds: How many holds over the threshold.
        held_s: How long they took together, in seconds.
        knocks: How often it asked for the GIL since it was started last.
    """

    holds: int
    held_s: float
    knocks: int


class Watchdog(Background["_Session"]):
    """Records every hold of the GIL over a threshold, with the Python line that caused it.

    It costs well under 1 % of a core while all is well, and then takes the GIL not at
    all or, where a thread is busy in Python, some 50 times a second for a few
    microseconds. It never reports a call that released the GIL, however long, nor
    Python code that runs for long but gives way.

    A hold is met for certain if it is longer than ``threshold + 2.1 * mean_gap``; one
    that is just over the threshold is met now and then. Python code that calls nothing
    slow, but whose thread the operating system takes off its core, is not a hold.
    A thread that ends right after a hold can be gone before anybody looked, rarely where the main thread is
    the only one to wait for the GIL: the hold is reported, with its name and without a line.

    Start it with ``with``, or with ``start()`` and ``stop()``, as often as you like. It
    stops by itself at interpreter exit. In the child of a fork it is stopped, and
    can be started again.

    Args:
        threshold: Seconds; longer holds are recorded. At least twice the switch
            interval (``sys.getswitchinterval()``, 5 ms by default): below that, a hold
            cannot be told from the turn that every Python thread has.
        on_hold: Called with each ``LongHold``, in a thread of the watchdog's own, with
            the watching going on meanwhile. What it raises is logged. Without it,
            each hold is logged as a warning of the logger "torchgil.watchdog".
        max_holds: How many holds are kept, the newest ones.
        mean_gap: Seconds between two looks while nobody holds the GIL, on average; the
            gaps are random. None: a fifth of the threshold, at least 10 ms. Less meets short
            holds more surely and costs more.

    Raises:
        ValueError: An argument is out of range, or on_hold is a coroutine function, which nobody would await.

    >>> import torchgil
    >>> with torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None) as watchdog:
    ...     _ = torchgil.released.spin(0.2)
    ...     _ = torchgil.held.spin(0.2)
    >>> [(hold.thread_name, hold.duration_s > 0.05) for hold in watchdog.holds]
    [('MainThread', True)]
    """

    def __init__(
        self,
        threshold: float = 0.05,
        on_hold: Callable[[LongHold], object] | None = None,
        *,
        max_holds: int = 1000,
        mean_gap: float | None = None,
    ) -> None:
        self.threshold = _checked_threshold(threshold)
        wanted = "an integer of at least 1"
        max_holds = whole("Watchdog: max_holds", max_holds, 1, sys.maxsize, wanted=wanted, kind=ValueError)
        if mean_gap is None:
            mean_gap = max(self.threshold / 5, 0.01)
        wanted = "from 0.0001 to 60 seconds"
        self.mean_gap = number("Watchdog: mean_gap", mean_gap, 1e-4, 60, wanted=wanted, kind=ValueError)
        self.on_hold = None if on_hold is None else _checked_callback(on_hold)
        self._reports: deque[_Report] = deque(maxlen=max_holds)
        self._totals = [0.0, 0.0]  # holds, and their seconds; the prober's to write

    @property
    def holds(self) -> list[LongHold]:
        """The holds so far, oldest first, of every time it ran. A new list at each call."""
        return [_describe(report) for report in list(self._reports)]

    def stats(self) -> WatchdogStats:
        """How many holds there were, and how long they took; see `WatchdogStats`."""
        holds, held_s = self._totals
        return WatchdogStats(int(holds), held_s, self.knocks)

    @property
    def knocks(self) -> int:
        """How often it asked for the GIL since it was started; 0 when it is stopped."""
        session = self._session
        return 0 if session is None else session.prober.knocks

    def _begin(self) -> _Session:
        _checked_threshold(self.threshold)  # the switch interval may have been raised
        return _Session(self)

    def stop(self) -> None:
        """Ends watching; both native threads are gone when it returns. Twice does no harm.

        Each hold found so far has been passed to on_hold then, unless on_hold does not return:
        stop() waits 5 s for it, logs that it goes on, and returns.
        """
        super().stop()

    def _ended(self, session: _Session) -> None:
        session.wait_for_on_hold()


class _Session:
    """A watchdog that runs: its prober, and the thread that tells the user."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._told: SimpleQueue[_Report | None] = SimpleQueue()
        # Before the thread: wherever Ctrl-C ends this, it ends too.
        weakref.finalize(self, self._told.put, None).atexit = False
        self._teller = threading.Thread(
            target=_tell,
            args=(self._told, watchdog.on_hold or _log_hold),
            name="torchgil-watchdog",
            daemon=True,
        )
        period = min(max(watchdog.threshold / 20, 0.0005), 0.005)
        try:
            self._teller.start()
            self.prober = C.Prober(
                watchdog.threshold,
                watchdog.mean_gap,
                period,
                threads=getattr(threading, "_active", {}),
                sinks=[watchdog._reports.append, self._told.put],
                totals=watchdog._totals,
            )
        except BaseException:
            self._told.put(None)
            raise

    def listen(self) -> None:
        thread_life.listen(self.prober)

    def stop(self) -> None:
        self.prober.stop()
        thread_life.leave(self.prober)
        self._told.put(None)

    def wait_for_on_hold(self) -> None:
        if threading.current_thread() is self._teller:
            return  # on_hold stops its own watchdog: the thread ends once it returns
        self._teller.join(_CALLBACK_PATIENCE_S)
        if self._teller.is_alive():
            _log.warning(
                "Watchdog: on_hold has not returned for %g s; its thread goes on", _CALLBACK_PATIENCE_S
            )


def _tell(told: SimpleQueue[_Report | None], on_hold: Callable[[LongHold], object]) -> None:
    while (report := told.get()) is not None:
        try:
            on_hold(_describe(report))
        except BaseException:  # whatever it is, the watching goes on
            _log.exception("Watchdog: on_hold raised; the watchdog goes on")


def _describe(report: _Report) -> LongHold:
    duration_s, queued_s, name, ident, exact, frames, (count, collecting_s, longest_s, generation) = report
    stack = tuple(
        FrameSummary(filename, lineno, function, lookup_line=False) for filename, lineno, function in frames
    )
    filename, lineno, function = frames[-1] if frames else ("", 0, "")
    return LongHold(
        duration_s=duration_s,
        queued_s=queued_s,
        thread_name=name or (f"thread {ident}" if ident else "a thread that has ended"),
        ident=ident,
        filename=filename,
        lineno=lineno,
        function=function,
        stack=stack,
        exact=exact,
        collections=Collections(
            count=count,
            wall_s=collecting_s,
            held_s=collecting_s,
            longest_s=longest_s,
            generation=generation if count else None,
        ),
    )


def _log_hold(hold: LongHold) -> None:
    _log.warning("%s", hold.format().rstrip())


def _checked_threshold(threshold: float) -> float:
    least = 2 * sys.getswitchinterval()
    wanted = f"from {least:g} (twice the switch interval, see torchgil.switch_interval) to 3600 seconds"
    return number("Watchdog: threshold", threshold, least, 3600, wanted=wanted, kind=ValueError)


def _checked_callback(on_hold: object) -> Callable[[LongHold], object]:
    try:
        callback: Callable[[LongHold], object] = function("Watchdog: on_hold", on_hold)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return callback
