"""Holds and hangs that a watchdog found, as a table and as plain data. Pure."""

from __future__ import annotations

from collections import defaultdict
from traceback import FrameSummary
from typing import Any

from torchgil._formatting import duration, table
from torchgil.watching._holds import Hang, LongHold

__all__ = ["document", "summary"]


def summary(holds: list[LongHold], threshold_s: float) -> str:
    """A table, one row per line of code, the greatest sum first."""
    if not holds:
        return f"torchgil: no hold of the GIL over {duration(threshold_s)} was met"
    by_line: defaultdict[str, list[LongHold]] = defaultdict(list)
    for hold in holds:
        place = f"{hold.filename}:{hold.lineno} in {hold.function}" if hold.stack else hold.thread_name
        caller = hold.caller
        if caller:
            place += f", called from {caller.filename}:{caller.lineno}"
        by_line[place].append(hold)
    rows = [
        (
            place,
            str(len(found)),
            duration(sum(hold.duration_s for hold in found)),
            duration(max(hold.duration_s for hold in found)),
            ", ".join(sorted({hold.thread_name for hold in found})),
        )
        for place, found in sorted(by_line.items(), key=lambda entry: -sum(h.duration_s for h in entry[1]))
    ]
    head = ("line", "holds", "sum", "longest", "threads")
    return f"torchgil: holds of the GIL over {duration(threshold_s)}\n{table(head, rows)}"


def document(holds: list[LongHold], hangs: list[Hang], threshold_s: float) -> dict[str, Any]:
    """Both as plain data, for JSON."""
    return {
        "format": "torchgil-watch",
        "version": 1,
        "threshold_s": threshold_s,
        "holds": [_plain(hold) for hold in holds],
        "hangs": [
            {
                **_plain(hang),
                "state": hang.state,
                "objects": list(hang.objects),
                "deadlocked": hang.deadlocked,
                "waiting_known": hang.waiting_known,
                "waiting": [
                    {"thread_name": each.thread_name, "stack": _frames(each.stack)} for each in hang.waiting
                ],
            }
            for hang in hangs
        ],
    }


def _plain(hold: LongHold) -> dict[str, Any]:
    return {
        "duration_s": hold.duration_s,
        "queued_s": hold.queued_s,
        "thread_name": hold.thread_name,
        "filename": hold.filename,
        "lineno": hold.lineno,
        "function": hold.function,
        "exact": hold.exact,
        "stack": _frames(hold.stack),
    }


def _frames(stack: tuple[FrameSummary, ...]) -> list[list[Any]]:
    return [[frame.filename, frame.lineno, frame.name] for frame in stack]
