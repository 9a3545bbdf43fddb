"""The watchdog: says which line held the GIL too long, while the program runs.

Two native threads do it (csrc/gil/watch/prober.h). One, which all watchers share, looks, without the GIL, at
who holds it; where the same thread is met twice it lets the other knock, that
is, ask for the GIL as any thread would. Code that gives way by itself gives way
to the knock. A call that does not is caught the moment it ends: the interpreter
gives way right after it, with the call still the line its thread is in. Where it
does not end for seconds, the first thread says so itself, without Python.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from queue import SimpleQueue

from torchgil._checks import function, number, shown, whole
from torchgil._files import identity
from torchgil._gil_half import C
from torchgil.watching import _thread_life as thread_life
from torchgil.watching._background import Background
from torchgil.watching._holds import Hang, HangReport, HoldReport, LongHold, hang_of, hold_of

__all__ = ["Watchdog", "WatchdogStats"]

_log = logging.getLogger("torchgil.watchdog")

_CALLBACK_PATIENCE_S = 5.0
_STANDARD_ERROR = 2


@dataclass(frozen=True, slots=True)
class WatchdogStats:
    """What a watchdog found in all the time it ran, also what it does not keep any more.

    Attributes:
        holds: How many holds over the threshold.
        held_s: How long they took together, in seconds.
        knocks: How often it asked for the GIL since it was started last.
        hangs: How many holds were told of while they went on.
        hold_s: For how long the hold has gone on, in seconds, that the watchdog looks at just now; 0 where
            nobody has held the GIL at two of its looks.
    """

    holds: int
    held_s: float
    knocks: int
    hangs: int = 0
    hold_s: float = 0.0


class Watchdog(Background["_Session"]):
    """Records every hold of the GIL over a threshold, with the Python line that caused it.

    It costs well under 1 % of a core while all is well, and then takes the GIL not at
    all or, where a thread is busy in Python, some 50 times a second for a few
    microseconds. It never reports a call that released the GIL, however long, nor
    Python code that runs for long but gives way.

    A hold is met for certain if it is longer than ``1.1 * threshold + 2 * mean_gap``; one
    that is just over the threshold is met now and then. Python code that calls nothing
    slow, but whose thread the operating system takes off its core, is not a hold.
    A thread that ends right after a hold can be gone before anybody looked, rarely where the main thread is
    the only one to wait for the GIL: the hold is reported, with its name and without a line.

    **Hangs.** Where one hold lasts longer than `hang` seconds and goes on, no Python code can run, and
    nothing in Python can say so. A native thread of the watchdog's says it then: which thread, for how long,
    its Python stack, whether it runs or sleeps and in which system call, and who waits for the GIL; again
    when it has lasted 2, 4, 8 times as long, and once when it has ended. It reads the process's own memory:
    no signal is sent, no thread is interrupted. Time in which the whole process stood still, by SIGSTOP, a
    debugger or a suspended machine, does not count. A name that a thread was given in the second before the
    hang may not be known yet.

    Start it with ``with``, or with ``start()`` and ``stop()``, as often as you like. It
    stops by itself at interpreter exit. In the child of a fork it is stopped, and
    can be started again.

    Args:
        threshold: Seconds; longer holds are recorded. At least twice the switch
            interval (``sys.getswitchinterval()``, 5 ms by default): below that, a hold
            cannot be told from the turn that every Python thread has.
        on_hold: Called with each ``LongHold``, in a thread of the watchdog's own, with
            the watching going on meanwhile. What it raises is logged. Without it,
            each hold but a hang is logged as a warning of the logger "torchgil.watchdog".
        max_holds: How many holds are kept, the newest ones.
        hang: Seconds; a hold that lasts longer is told of while it goes on. None: none is.
        on_hang: Called with each `Hang` once it has ended and Python runs again, as on_hold is. Without it,
            each hang is logged as an error of the logger "torchgil.watchdog".
        exit_after: Seconds; where one hold lasts as long, the process is told of it and ended with exit code
            70, by ``_exit``: nothing is flushed, no handler runs. For a service that is restarted then. None:
            it goes on.
        hang_output: Where hangs are written while they go on: a path, which is appended to, or a file
            descriptor, which has to stay open. None: to standard error, file descriptor 2. A file that is
            opened here is not passed on to programs that the process starts.
        mean_gap: Seconds between two looks while nobody holds the GIL, on average; the
            gaps are random. None: a fifth of the threshold, at least 10 ms. Less meets short
            holds more surely and costs more.

    Raises:
        ValueError: An argument is out of range, or a function is a coroutine function, which nobody awaits.
        OSError: The file for hangs cannot be opened; raised by ``start``.

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
        hang: float | None = 10.0,
        on_hang: Callable[[Hang], object] | None = None,
        exit_after: float | None = None,
        hang_output: int | str | PathLike[str] | None = None,
    ) -> None:
        self.threshold = _checked_threshold(threshold)
        wanted = "an integer of at least 1"
        max_holds = whole("Watchdog: max_holds", max_holds, 1, sys.maxsize, wanted=wanted, kind=ValueError)
        if mean_gap is None:
            mean_gap = max(self.threshold / 5, 0.01)
        wanted = "from 0.0001 to 60 seconds"
        self.mean_gap = number("Watchdog: mean_gap", mean_gap, 1e-4, 60, wanted=wanted, kind=ValueError)
        self.on_hold = None if on_hold is None else _checked_callback("on_hold", on_hold)
        self.hang = None if hang is None else _checked_hang(hang)
        self.on_hang = None if on_hang is None else _checked_callback("on_hang", on_hang)
        self.exit_after = None if exit_after is None else _checked_exit(exit_after, self.hang)
        self.hang_output = _checked_output(hang_output)
        self._reports: deque[HoldReport] = deque(maxlen=max_holds)
        self._hang_reports: deque[HangReport] = deque(maxlen=max_holds)
        self._totals = [0.0, 0.0, 0.0]  # holds, their seconds, hangs; the prober's to write

    @property
    def holds(self) -> list[LongHold]:
        """The holds so far, oldest first, of every time it ran. A new list at each call."""
        return [hold_of(report) for report in list(self._reports)]

    @property
    def hangs(self) -> list[Hang]:
        """The hangs so far that have ended, oldest first, of every time it ran. A new list at each call."""
        return [hang_of(report) for report in list(self._hang_reports)]

    def stats(self) -> WatchdogStats:
        """How many holds there were, and how long they took; see `WatchdogStats`."""
        holds, held_s, hangs = self._totals
        session = self._session
        hold_s = 0.0 if session is None else session.prober.holding_s
        return WatchdogStats(int(holds), held_s, self.knocks, int(hangs), hold_s)

    @property
    def knocks(self) -> int:
        """How often it asked for the GIL since it was started; 0 when it is stopped."""
        session = self._session
        return 0 if session is None else session.prober.knocks

    def _begin(self) -> _Session:
        _checked_threshold(self.threshold)  # the switch interval may have been raised
        return _Session(self)

    def stop(self) -> None:
        """Ends watching; its native threads are gone then, the one that looks with the last watcher.

        Twice does no harm.

        Each hold found so far has been passed to on_hold then, unless on_hold does not return:
        stop() waits 5 s for it, logs that it goes on, and returns.
        """
        super().stop()

    def _ended(self, session: _Session) -> None:
        session.wait_for_on_hold()


class _Session:
    """A watchdog that runs: its prober, and the thread that tells the user."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._told: _Told = SimpleQueue()
        # Before the thread: wherever Ctrl-C ends this, it ends too.
        weakref.finalize(self, self._told.put, None).atexit = False
        self._teller = threading.Thread(
            target=_tell,
            args=(self._told, watchdog.on_hold, watchdog.on_hang or _log_hang),
            name="torchgil-watchdog",
            daemon=True,
        )
        shortest = min(watchdog.threshold, watchdog.hang or math.inf)
        self._output = _Output(watchdog.hang_output)
        try:
            self._teller.start()
            self.prober = C.Prober(
                threshold_s=watchdog.threshold,
                mean_gap_s=watchdog.mean_gap,
                look_period_s=min(max(shortest / 20, 0.0005), 0.005),
                hang_s=watchdog.hang or 0.0,
                exit_after_s=watchdog.exit_after or 0.0,
                output=self._output.descriptor,
                threads=getattr(threading, "_active", {}),
                sinks=[watchdog._reports.append, self._told.put],
                hang_sinks=[watchdog._hang_reports.append, self._told.put],
                totals=watchdog._totals,
            )
        except BaseException:
            self._told.put(None)
            self._output.close()
            raise

    def listen(self) -> None:
        thread_life.listen(self.prober)

    def stop(self) -> None:
        self.prober.stop()
        thread_life.leave(self.prober)
        self._told.put(None)
        self._output.close()

    def wait_for_on_hold(self) -> None:
        if threading.current_thread() is self._teller:
            return  # on_hold stops its own watchdog: the thread ends once it returns
        self._teller.join(_CALLBACK_PATIENCE_S)
        if self._teller.is_alive():
            _log.warning(
                "Watchdog: on_hold has not returned for %g s; its thread goes on", _CALLBACK_PATIENCE_S
            )


_Told = SimpleQueue[HoldReport | HangReport | None]


def _tell(
    told: _Told, on_hold: Callable[[LongHold], object] | None, on_hang: Callable[[Hang], object]
) -> None:
    while (report := told.get()) is not None:
        try:
            if len(report) == 4:  # as a hang's has
                on_hang(hang_of(report))
            elif on_hold is not None:
                on_hold(hold_of(report))
            elif not report[-1]:  # or on_hang, or the log, has it already
                _log_hold(hold_of(report))
        except BaseException:  # whatever it is, the watching goes on
            _log.exception("Watchdog: on_hold or on_hang raised; the watchdog goes on")


def _log_hold(hold: LongHold) -> None:
    _log.warning("%s", hold.format().rstrip())


def _log_hang(hang: Hang) -> None:
    _log.error("%s", hang.format().rstrip())


class _Output:
    """Where hangs are written: a file of ours, or a file descriptor that is there."""

    # Where a FIFO has no reader, that is an error, and no wait for one.
    _FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK

    _ours: tuple[int, int] | None = None  # which file it is, where we have opened it

    def __init__(self, output: int | str | None) -> None:
        if isinstance(output, str):
            self.descriptor = os.open(output, self._FLAGS, 0o666)
            self._ours = identity(self.descriptor)
        else:
            self.descriptor = _STANDARD_ERROR if output is None else output

    def close(self) -> None:
        """Twice does no harm, nor where the program has closed it, and has its number for another file."""
        ours, self._ours = self._ours, None
        if ours is not None and identity(self.descriptor) == ours:
            os.close(self.descriptor)

    __del__ = close  # of one that Ctrl-C came before


def _checked_threshold(threshold: float) -> float:
    least = 2 * sys.getswitchinterval()
    wanted = f"from {least:g} (twice the switch interval, see torchgil.switch_interval) to 3600 seconds"
    return number("Watchdog: threshold", threshold, least, 3600, wanted=wanted, kind=ValueError)


def _checked_hang(hang: float) -> float:
    least = 2 * sys.getswitchinterval()
    wanted = f"from {least:g} (twice the switch interval) to 86400 seconds, or None"
    return number("Watchdog: hang", hang, least, 86400, wanted=wanted, kind=ValueError)


def _checked_exit(exit_after: float, hang: float | None) -> float:
    if hang is None:
        raise ValueError("Watchdog: exit_after needs hang, which tells what went on: it is None")
    wanted = f"from {hang:g} (hang) to 86400 seconds, or None"
    return number("Watchdog: exit_after", exit_after, hang, 86400, wanted=wanted, kind=ValueError)


def _checked_output(output: object) -> int | str | None:
    wanted = "Watchdog: hang_output must be a path, a file descriptor, or None"
    if output is None or (isinstance(output, int) and not isinstance(output, bool) and output >= 0):
        return output
    try:
        # Of this moment's folder, whatever the program's is when it starts.
        return os.path.abspath(os.fsdecode(output))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{wanted}, got {shown(output)}") from None


def _checked_callback(name: str, given: object) -> Callable[..., object]:
    try:
        callback: Callable[..., object] = function(f"Watchdog: {name}", given)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return callback
