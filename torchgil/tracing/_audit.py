"""`audit`: one call under a trace, and its verdict."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torchgil import _html as html
from torchgil._extension import Extension, of_callable
from torchgil._formatting import duration, one_line
from torchgil._garbage import COLLECTION_MEND, NO_COLLECTIONS, Collections, collections
from torchgil._gil_half import C
from torchgil.tracing._collecting import together
from torchgil.tracing._figures import LONG_HOLD_S, Span, Verdict, verdict_of
from torchgil.tracing._notebook import picture
from torchgil.tracing._recording import Kind
from torchgil.tracing._report import Report
from torchgil.tracing._trace import Trace

__all__ = ["Audit", "audit"]

T = TypeVar("T")

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
MAX_EVENTS = 10_000_000  # 160 MB if all are used; pages are touched only when they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit(Span, Generic[T]):
    """What one call did to the GIL, in its thread; :func:`torchgil.audit` returns it.

    Free, held, wait and preempted are in seconds, and add up to wall_s.

    Attributes:
        verdict: ``"releases"`` where at least 90 % of the call's wall time was free, ``"holds"`` where at
            most 10 % was, else ``"partly"``; ``"no GIL"`` where the interpreter has none, ``"unknown"`` where
            it cannot be seen who held it.
        free_fraction: free_s over wall_s.
        wall_s: From just before the call to just after.
        free_s: Released, and not yet asked for again.
        held_s: Held by this thread.
        wait_s: Asked for, by a thread that had released it.
        preempted_s: The interpreter had switched to another thread, unasked.
        releases: How often the thread released it.
        longest_hold_s: The longest that it held the GIL in one go.
        longest_wait_s: The longest that it waited.
        collections: The garbage collections of this thread in the call; part of the times above.
        result: What the function returned.
        report: The whole trace's, every thread in it.
        collections_elsewhere: Garbage collections of other threads meanwhile.
        extension: Where the function is from, if it held the GIL for more than 5 ms in one go.

    Example:
        >>> import torchgil, zlib
        >>> record: torchgil.Audit[bytes] = torchgil.audit(zlib.compress, bytes(50_000_000))
        >>> record.verdict, len(record.result) < 1_000_000
        ('releases', True)
    """

    verdict: Verdict
    free_fraction: float
    result: T = field(repr=False)
    report: Report = field(repr=False)
    collections_elsewhere: Collections = NO_COLLECTIONS
    extension: Extension | None = None

    def __str__(self) -> str:
        """One paragraph: the verdict and the numbers behind it."""
        lines = [
            f"{self.verdict}: {100 * self.free_fraction:.1f} % of {duration(self.wall_s)} free "
            f"({self.releases} release{'' if self.releases == 1 else 's'})",
            f"free {duration(self.free_s)}, "
            f"held {duration(self.held_s)} (longest {duration(self.longest_hold_s)}), "
            f"waited {duration(self.wait_s)} (longest {duration(self.longest_wait_s)}), "
            f"preempted {duration(self.preempted_s)}",
        ]
        lines += self._collected()
        lines += [f"it ran {self.extension}"] if self.extension else []
        lines += [f"note: {one_line(note)}" for note in self.report.notes]
        return "\n".join(lines)

    def _collected(self) -> list[str]:
        """Garbage collections that fell into the call, in words, and long ones of other threads."""
        mine = self.collections
        lines = []
        if mine.count:
            others_s = self.wall_s - mine.wall_s
            free = 100 * (self.free_s - mine.free_s) / others_s if others_s > 0 else 0.0
            lines.append(
                f"in it: {collections(mine)}; {duration(mine.held_s)} of that with the GIL held, and "
                f"{mine.releases} of the releases. Of the other {duration(others_s)} {free:.1f} % was free"
            )
        if self.collections_elsewhere.longest_s >= LONG_HOLD_S:
            lines.append(f"in other threads meanwhile: {collections(self.collections_elsewhere)}")
        if max(mine.longest_s, self.collections_elsewhere.longest_s) >= LONG_HOLD_S:
            lines.append(f"hint: {COLLECTION_MEND}")
        return lines

    def _repr_html_(self) -> str:
        verdict, *rest = str(self).splitlines()
        lines = [html.paragraph(verdict, strong=True), *map(html.paragraph, rest)]
        if self.report.recording.gil_seen and self.report.threads:
            lines.append(picture(self.report))
        return html.page(*lines)


def audit(fn: Callable[..., T], /, *args: object, **kwargs: object) -> Audit[T]:
    """Calls ``fn(*args, **kwargs)`` once, here, under a trace, and says what it did to the GIL.

    The times are those of the calling thread, from just before the call to just after,
    the call of fn by Python included (about 100 ns). Preemption is never counted as
    free: a thread that was switched out has released nothing. A call that has to wait
    for the GIL back has a longer wall time, so judge a short call in a quiet process.

    Args:
        fn: Anything callable, but no coroutine function: its call makes a coroutine, and its body runs later.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The record, fn's result and the whole trace's report included.

    Raises:
        RuntimeError: A trace is running already.
        TypeError: fn is a coroutine function or an async generator function.
        BaseException: Whatever fn raises, unchanged; the trace is taken down first.

    >>> import torchgil, zlib
    >>> torchgil.audit(zlib.compress, bytes(50_000_000)).verdict
    'releases'
    >>> torchgil.audit(sorted, range(1_000_000)).verdict
    'holds'
    """
    function: Any = fn
    while type(function) in (functools.partial, types.MethodType):
        function = function.func if type(function) is functools.partial else function.__func__
    # By their types: an object may raise when it is asked what it is.
    if type(function) is types.FunctionType and function.__code__.co_flags & _ASYNC:
        raise TypeError(
            f"audit: {function.__qualname__} is a coroutine function, whose call only "
            "makes a coroutine: audit what runs it, as in torchgil.audit(lambda: asyncio.run(fn(...)))"
        )
    trace = Trace(max_events=MAX_EVENTS)
    with trace:
        C.trace_mark()
        try:
            result = fn(*args, **kwargs)
        finally:
            C.trace_mark()
    report = trace.report()
    me = threading.get_native_id()
    (thread,) = (t for t in report.recording.threads if t.native_id == me)
    marks = [t for t, kind in zip(thread.times_ns, thread.kinds, strict=True) if kind == Kind.MARK]
    # The second is lost where the buffer was full before the call ended; the report says so.
    span = report.span(me, marks[0], marks[1] if marks[1:] else report.recording.complete_until_ns)
    verdict: Verdict
    if report.recording.gil_seen:
        verdict = verdict_of(span.free_s, span.wall_s)
    else:
        verdict = "unknown" if report.recording.has_gil else "no GIL"
    return Audit(
        verdict=verdict,
        free_fraction=span.free_s / span.wall_s if span.wall_s else 0.0,
        **{name: getattr(span, name) for name in Span.__slots__},
        result=result,
        report=report,
        collections_elsewhere=together(t.collections for t in report.threads if t.native_id != me),
        extension=of_callable(fn) if span.longest_hold_s > LONG_HOLD_S else None,
    )
