"""What a watchdog finds: long holds of the GIL, and hangs, which it told of while they went on."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from traceback import FrameSummary, StackSummary
from typing import Any

from torchgil import _extension as extension
from torchgil import _html as html
from torchgil._extension import Extension
from torchgil._formatting import one_line
from torchgil._garbage import COLLECTION_MEND, NO_COLLECTIONS, Collections, collections

__all__ = ["Hang", "HangReport", "HoldReport", "LongHold", "Waiting", "hang_of", "hold_of"]

_Frames = list[tuple[str, int, str]]

# What the prober reports: duration, queued, thread's name and ident, exact, frames, the collections in it:
# how many, their seconds, the longest one's, its generation; and whether it was told of as a hang.
HoldReport = tuple[float, float, str, int, bool, _Frames, tuple[int, float, float, int], bool]

# Of a hang: the hold, what its thread did, of each thread that waited its name, ident and frames, or None
# where that is not known, and the shared objects on the native stack.
HangReport = tuple[HoldReport, str, list[tuple[str, int, _Frames]] | None, list[str]]

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
class Waiting:
    """A thread that waited for the GIL while another one hung with it.

    Attributes:
        thread_name: Its name; for a thread that Python did not start, the operating system's.
        ident: Its ``threading.Thread.ident``; 0 when it is not known.
        stack: Its Python frames, outermost first; empty where it has none, or they could not be read.
    """

    thread_name: str
    ident: int
    stack: tuple[FrameSummary, ...]

    def __str__(self) -> str:
        name = one_line(self.thread_name)
        if not self.stack:
            return f"{name} waited for the GIL"
        frame = self.stack[-1]
        return f"{name} waited for the GIL at " + one_line(f"{frame.filename}:{frame.lineno} in {frame.name}")


@dataclass(frozen=True, slots=True)
class Hang(LongHold):
    """A hold of the GIL that lasted longer than ``hang`` seconds, as it was seen while it went on.

    The thread, its stack, its state and who waited are those of the last time that the watchdog told of it;
    the duration is that of the whole hold.

    Attributes:
        duration_s: As of a `LongHold`, and so are the next ones.
        queued_s: Likewise.
        thread_name: Likewise.
        ident: Likewise.
        filename: Likewise; "" where the frames could not be read.
        lineno: Likewise; 0 where they could not.
        function: Likewise; "" where they could not.
        stack: Likewise; empty where they could not.
        exact: True.
        collections: As of a `LongHold`.
        state: What the thread did: "runs", or "sleeps in" and the name of the system call.
        waiting: The threads that waited for the GIL then; empty where that is not known.
        objects: Paths of the shared objects on the thread's native stack, the innermost first, up to the
            interpreter; of one that sleeps alone. The stack is read, not unwound: one whose call ended a
            moment before can be among them.
        waiting_known: Whether it could be seen who waited: not where the process has no ``/proc``.

    Example:
        >>> import os, torchgil
        >>> null = os.open(os.devnull, os.O_WRONLY)
        >>> with torchgil.Watchdog(hang=0.1, on_hang=lambda hang: None, hang_output=null) as watchdog:
        ...     _ = torchgil.held.sleep(0.3)
        >>> [(hang.function, hang.state) for hang in watchdog.hangs]
        [('<module>', 'sleeps in clock_nanosleep')]
        >>> os.close(null)
    """

    state: str = ""
    waiting: tuple[Waiting, ...] = ()
    objects: tuple[str, ...] = ()
    waiting_known: bool = True

    @property
    def deadlocked(self) -> bool:
        """Whether it looked like a deadlock: the holder slept on a lock while others waited for the GIL.

        Who has that lock is not known: if a thread that needs no GIL lets go of it, the hold ends.
        """
        return self.state == "sleeps in futex" and bool(self.waiting)

    def __str__(self) -> str:
        number = len(self.waiting)
        waited = f"{number or 'no'} other thread{'s' if number > 1 else ''} waited for the GIL"
        if not self.waiting_known:
            waited = "whether other threads waited for the GIL is not known"
        if self.deadlocked:
            waited = f"it held the GIL and waited for something else; {waited}"
        # Not super(): a dataclass with slots is another class than the one that this function was written in.
        return f"{LongHold.__str__(self)}; it {self.state}; {waited}"

    def format(self) -> str:
        """The hang, its stack, and the stacks of the threads that waited, as a traceback would print them."""
        parts = [LongHold.format(self)]
        parts += [f"{each}\n" + "".join(StackSummary.from_list(each.stack).format()) for each in self.waiting]
        return "".join(parts)


def hold_of(report: HoldReport) -> LongHold:
    """What a prober has reported."""
    return LongHold(**_hold_fields(report))


def hang_of(report: HangReport) -> Hang:
    """What a prober has reported of a hold that was told of while it went on."""
    hold, state, waiting, objects = report
    return Hang(
        **_hold_fields(hold),
        state=state,
        objects=tuple(objects),
        waiting=tuple(
            Waiting(name or f"thread {ident}", ident, _stack(frames)) for name, ident, frames in waiting or ()
        ),
        waiting_known=waiting is not None,
    )


def _stack(frames: Iterable[tuple[str, int, str]]) -> tuple[FrameSummary, ...]:
    return tuple(FrameSummary(*frame, lookup_line=False) for frame in frames)


def _hold_fields(report: HoldReport) -> dict[str, Any]:
    duration_s, queued_s, name, ident, exact, frames, collected, _ = report
    count, collecting_s, longest_s, generation = collected
    filename, lineno, function = frames[-1] if frames else ("", 0, "")
    return {
        "duration_s": duration_s,
        "queued_s": queued_s,
        "thread_name": name or (f"thread {ident}" if ident else "a thread that has ended"),
        "ident": ident,
        "filename": filename,
        "lineno": lineno,
        "function": function,
        "stack": _stack(frames),
        "exact": exact,
        "collections": Collections(
            count=count,
            wall_s=collecting_s,
            held_s=collecting_s,
            longest_s=longest_s,
            generation=generation if count else None,
        ),
    }
