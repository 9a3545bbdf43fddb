"""What a marked test may do to the GIL, and the words for where it did more; pytest_plugin reports them."""

from __future__ import annotations

import heapq
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgil.tracing import Audit
    from torchgil.watching import LongHold

__all__ = ["Breach", "Limits", "breach_of", "longest_hold"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a test's markers; None: no limit."""

    min_free: float | None
    max_hold_s: float | None


@dataclass(frozen=True, slots=True)
class Breach:
    """That a limit was not kept: in one line, and all that is known of it."""

    why: str
    details: str


def breach_of(record: Audit[Any], holds: Sequence[LongHold], limits: Limits) -> Breach | None:
    """Where a call went over its limits.

    Args:
        record: The call.
        holds: What a watchdog beside it has named.
        limits: What was allowed.
    """
    from torchgil._formatting import duration, one_line

    if limits.min_free is not None and record.free_fraction < limits.min_free:
        return Breach(
            f"releases_gil(min_free={limits.min_free:g}): the GIL was free for "
            f"{100 * record.free_fraction:.1f} % of the test's {duration(record.wall_s)}",
            _details(record, holds),
        )
    longest_s, name = longest_hold(record)
    if limits.max_hold_s is not None and longest_s > limits.max_hold_s:
        return Breach(
            f"max_gil_hold({limits.max_hold_s:g}): {one_line(name)} held the GIL for {duration(longest_s)} "
            "in one go",
            _details(record, holds),
        )
    return None


def longest_hold(record: Audit[Any]) -> tuple[float, str]:
    """Of all threads, and whose. The test's own thread counts within the call alone."""
    me = threading.current_thread()
    others = [t for t in record.report.threads if t.native_id != me.native_id]
    return max([(record.longest_hold_s, me.name), *((t.longest_hold_s, t.name) for t in others)])


def _details(record: Audit[Any], holds: Sequence[LongHold]) -> str:
    """The numbers, and the ops and the lines that held longest."""
    from torchgil._formatting import duration, one_line

    ops = heapq.nlargest(3, (op for op in record.report.ops if op.held_s > 0), key=lambda op: op.held_s)
    lines = [f"line {hold}" for hold in sorted(holds, key=lambda hold: -hold.duration_s)]
    if not lines:
        shortest = duration(2 * sys.getswitchinterval())
        lines = [f"line: not known, as no single call kept it for much more than {shortest}"]
    of_ops = [
        f"op {one_line(op.name)}: {op.calls} call{'s' if op.calls > 1 else ''}, "
        f"held {duration(op.held_s)} of {duration(op.wall_s)}, longest hold {duration(op.longest_hold_s)}"
        for op in ops
    ]
    return "\n".join([str(record), *of_ops, *lines[:3]])
