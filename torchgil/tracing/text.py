"""A report in words: tables, and hints where the numbers call for one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from torchgil.tracing.figures import LONG_HOLD_S, Collections, Figures

__all__ = [
    "COLLECTION_MEND",
    "collections",
    "collections_line",
    "duration",
    "headline",
    "hints",
    "op_table",
    "render",
    "table",
    "thread_table",
]

_HINTS = 3  # of one kind: the worst
COMPILED_REGION = "Torch-Compiled Region"
COLLECTION_MEND = (
    "gc.freeze() after loading leaves what was loaded out of later collections, and gc.collect() at a quiet "
    "moment does the work before a busy one"
)


def duration(seconds: float) -> str:
    """Three digits and a unit.

    >>> duration(1.234), duration(0.0567), duration(7.89e-6), duration(0)
    ('1.23 s', '56.7 ms', '7.89 us', '0')
    """
    if seconds == 0:
        return "0"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        value = seconds * factor
        if value >= 1:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first aligned left and the others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def collections(of: Collections) -> str:
    """How many garbage collections there were, and how long they took.

    >>> collections(Collections(count=1, wall_s=0.083, longest_s=0.083, generation=2))
    'a garbage collection of generation 2, 83.0 ms'
    """
    if of.count == 1:
        return f"a garbage collection of generation {of.generation}, {duration(of.wall_s)}"
    return (
        f"{of.count} garbage collections, {duration(of.wall_s)} in all, the longest {duration(of.longest_s)} "
        f"of generation {of.generation}"
    )


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
    return f"{collections(report.collections)} (in {longest.name}); {held} with the GIL held"


def thread_table(report: Figures) -> Table:
    """A row per thread."""
    names = "thread", "wall", "free", "held", "wait", "preempted", "releases", "longest hold", "longest wait"
    head: tuple[str, ...] = names
    rows: list[tuple[str, ...]] = [
        (
            _short(t.name),
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
            _short(op.name),
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
    parts += [f"note: {note}" for note in report.notes]
    return "\n\n".join(parts)


def hints(report: Figures) -> tuple[str, ...]:
    """What the numbers call for; nothing where they call for nothing."""
    if not report.recording.gil_seen:
        return ()
    return (*_waiting(report), *_holding(report), *_collecting(report))


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


def _short(name: str, width: int = 44) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."
