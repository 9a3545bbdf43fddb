"""A report in words: tables, and hints where the numbers call for one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from torchgil._formatting import duration, one_line, shortened, table
from torchgil._garbage import COLLECTION_MEND, collections
from torchgil.tracing._figures import LONG_HOLD_S, Figures

__all__ = [
    "collections_line",
    "headline",
    "hints",
    "op_table",
    "render",
    "thread_table",
]

_HINTS = 3  # of one kind: the worst
COMPILED_REGION = "Torch-Compiled Region"


Table = tuple[Sequence[str], list[tuple[str, ...]]]  # what `table` takes


def headline(report: Figures) -> str:
    """What the trace is of, in a line."""
    dropped = f", {report.dropped} dropped" if report.dropped else ""
    return (
        f"torchgil: {duration(report.wall_s)}, {len(report.threads)} threads, {report.events} events{dropped}"
    )


def collections_line(report: Figures) -> str:
    """Of all threads; "" without any."""
    if not report.collections.count:
        return ""
    longest = max(report.threads, key=lambda t: t.collections.longest_s)
    held = duration(report.collections.held_s)
    return f"{collections(report.collections)} (in {one_line(longest.name)}); {held} with the GIL held"


def thread_table(report: Figures) -> Table:
    """A row per thread."""
    names = "thread", "wall", "free", "held", "wait", "preempted", "releases", "longest hold", "longest wait"
    head: tuple[str, ...] = names
    rows: list[tuple[str, ...]] = [
        (
            shortened(t.name),
            *map(duration, (t.wall_s, t.free_s, t.held_s, t.wait_s, t.preempted_s)),
            str(t.releases),
            duration(t.longest_hold_s),
            duration(t.longest_wait_s),
        )
        for t in report.threads
    ]
    if report.collections.count:
        head += ("collecting",)
        rows = [(*row, duration(t.collections.wall_s)) for row, t in zip(rows, report.threads, strict=True)]
    return head, rows


def op_table(report: Figures, top: int) -> Table:
    """A row per op, for the `top` ones that hurt most."""
    head = ("op", "calls", "entered held", "wall", "free", "held", "wait", "longest hold", "verdict")
    rows = [
        (
            shortened(op.name),
            str(op.calls),
            str(op.calls_held),
            *map(duration, (op.wall_s, op.free_s, op.held_s, op.wait_s, op.longest_hold_s)),
            op.verdict,
        )
        for op in report.ops[:top]
    ]
    return head, rows


def render(report: Figures, *, top: int = 15) -> str:
    """The whole report, with the `top` ops that hurt most."""
    parts = [headline(report)]
    if report.recording.gil_seen and report.threads:
        parts.append(table(*thread_table(report)))
    if report.ops:
        parts.append(table(*op_table(report, top)))
        if len(report.ops) > top:
            parts[-1] += f"\n({len(report.ops) - top} more ops)"
    parts += [line] if (line := collections_line(report)) else []
    parts += [f"hint: {hint}" for hint in hints(report)]
    parts += [f"note: {one_line(note)}" for note in report.notes]
    return "\n\n".join(parts)


def hints(report: Figures) -> tuple[str, ...]:
    """What the numbers call for; nothing where they call for nothing."""
    if not report.recording.gil_seen:
        return ()
    return tuple(map(one_line, (*_waiting(report), *_holding(report), *_collecting(report))))


_KNOCKER = "torchgil-knock"  # the watchdog's thread that asks for the GIL: how long it waits is no find


def _waiting(report: Figures) -> list[str]:
    found = []
    for t in sorted(report.threads, key=lambda t: -t.wait_s):
        name, waited_s = next(iter(t.waits_after.items()), ("", 0.0))
        if waited_s < 0.2 * t.wall_s or waited_s < 0.001 or t.name.startswith(_KNOCKER):
            continue
        after = f"after {name}" if name else "after releases outside any op (a result freed, a file, a lock)"
        holder, held_s = next(iter(t.waits_for.items()), ("", 0.0))
        who = f", most of it while {holder} held it" if held_s >= 0.5 * t.wait_s else ""
        mend = "run the forward under one release with torchgil.nogil, " if name else ""
        found.append(
            f"{100 * waited_s / t.wall_s:.0f} % of {t.name}'s time went into waiting for the GIL back "
            f"{after}{who}: {mend}let it ask for the GIL at once with torchgil.gil_priority(), "
            "or all threads give way sooner with torchgil.switch_interval(1e-4)"
        )
    return found[:_HINTS]


def _holding(report: Figures) -> list[str]:
    found = []
    for op in report.ops:
        if op.longest_hold_s < LONG_HOLD_S:
            continue
        if op.name.startswith(COMPILED_REGION):
            found.append(
                f"{op.name} held the GIL for up to {duration(op.longest_hold_s)}: compiled kernels hold it "
                "by default; torch._inductor.config.cpp_wrapper = True releases it"
            )
        elif not op.user_scope:  # a user's block holds because its Python does
            found.append(
                f"{op.name} held the GIL for up to {duration(op.longest_hold_s)} at a time "
                f"({op.calls_held} of {op.calls} calls were entered with it): "
                "no other Python thread ran meanwhile" + (f"; {op.origin}" if op.origin else "")
            )
    return found[:_HINTS]


def _collecting(report: Figures) -> list[str]:
    found = []
    for t in sorted(report.threads, key=lambda t: -t.collections.longest_s):
        if t.collections.longest_s >= LONG_HOLD_S:
            held = duration(t.collections.held_s)
            found.append(
                f"{t.name} was in {collections(t.collections)}, {held} of it with the GIL held: "
                f"{COLLECTION_MEND}"
            )
    return found[:_HINTS]
