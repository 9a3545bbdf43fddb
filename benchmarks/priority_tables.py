"""The tables of docs/gil_priority.md that a CPU makes: bench_priority's and bench_io's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cells import milliseconds, shown, table


def priority_rows(rows: Any, wanted: list[tuple[str, int, int]], title: Callable[..., str]) -> list[str]:
    """Each wanted work alone and beside busy threads, in every way, and what is left to those."""
    ways = {"plain": "", "priority": "`gil_priority()`", "interval": "`setswitchinterval(1e-5)`"}
    mends = " | ".join(name for name in ways.values() if name)
    lines = []
    for work, workers, busy in wanted:
        of = {
            r["way"]: r
            for r in rows
            if (r["work"], r["workers"], r["busy"]) == (work, workers, busy) and r["way"] in ways
        }
        p50 = [of[way]["p50_s"] for way in ways]
        keep = [of[way]["busy_per_s"]["median"] / of[way]["busy_alone_per_s"]["median"] for way in ways]
        cells = [milliseconds(of["plain"]["alone_p50_s"]), *map(milliseconds, p50)]
        cells += [f"{share:.0%}" for share in keep]
        lines.append([title(work, workers, busy), *cells])
    return table(f"| alone | beside the busy | {mends} | the busy keep: | {mends}", lines)


def priority_works_rows(rows: Any) -> list[str]:
    titles = {
        "reacquire": "taking the GIL back after 0.2 ms",
        "eager": "eager forward, 4-layer transformer",
        "step": "a training step of it",
        "nogil": "`nogil`",
        "add": "`torch.add`, 4x4, back to back",
        "tiny": "a thousand releases of 2 us",
        "decode": "a token of a small language model",
        "pool": "the forward through a `ThreadPool`",
        "batcher": "256 rows through a `Batcher`",
    }
    measured = {(r["work"], r["workers"], r["busy"]) for r in rows}
    wanted = [(work, workers, 1) for workers in (1, 2) for work in titles if workers == 1 or work != "eager"]
    return priority_rows(
        rows,
        [row for row in wanted if row in measured],
        lambda work, workers, _: titles[work] + ", in two threads" * (workers == 2),
    )


def priority_crowds_rows(rows: Any) -> list[str]:
    """Forwards per second and the slowest hundredth, in every way, and what the busy threads keep."""
    ways = {"plain": "plain", "priority": "`gil_priority()`", "interval": "`setswitchinterval(1e-5)`"}
    lines = []
    for workers, busy in dict.fromkeys((r["workers"], r["busy"]) for r in rows if r["work"] == "eager"):
        of = {
            r["way"]: r
            for r in rows
            if (r["work"], r["workers"], r["busy"]) == ("eager", workers, busy) and r["way"] in ways
        }
        if not of or (workers, busy) == (1, 0):
            continue
        cells = [shown(of[way]["calls_per_s"], 1, ",.0f") for way in ways]
        cells += [milliseconds(of[way]["p99_s"]) for way in ways]
        for way in ways:
            alone = of[way]["busy_alone_per_s"]["median"]
            cells.append(f"{of[way]['busy_per_s']['median'] / alone:.0%}" if alone else "")
        lines.append([f"{workers} running it, {busy or 'nobody'} busy", *cells])
    heads = " | ".join(ways.values())
    return table(
        f"forwards a second, p99, and what the busy keep | a second: {heads} | p99: {heads} | keep: {heads}",
        lines,
    )


def priority_work_rows(rows: Any) -> list[str]:
    """What a crowd gets done, in cores: forwards times what one takes alone, and what the busy threads do."""
    ways = {"plain": "plain", "priority": "`gil_priority()`", "interval": "`setswitchinterval(1e-5)`"}
    (alone,) = [
        r["alone_p50_s"]["median"]
        for r in rows
        if (r["work"], r["way"], r["workers"], r["busy"]) == ("eager", "plain", 1, 1)
    ]
    lines = []
    for workers, busy in dict.fromkeys((r["workers"], r["busy"]) for r in rows if r["work"] == "eager"):
        if not busy:
            continue
        cells = []
        for way in ways:
            (r,) = [
                r
                for r in rows
                if (r["work"], r["way"], r["workers"], r["busy"]) == ("eager", way, workers, busy)
            ]
            keep = r["busy_per_s"]["median"] / r["busy_alone_per_s"]["median"]
            cells.append(f"{r['calls_per_s']['median'] * alone + keep:.2f}")
        lines.append([f"{workers} running it, {busy} busy", *cells])
    return table(f"cores' worth of work | {' | '.join(ways.values())}", lines)


def io_rows(rows: Any) -> list[str]:
    titles = {
        "echo": "64 bytes to another process and back",
        "queue": "an item to another thread, by `queue.Queue`",
        "asyncio": "how late an event loop's `sleep(0.001)` is",
    }
    ways = {
        "plain": "beside the busy",
        "priority": "`gil_priority()`",
        "interval": "`setswitchinterval(1e-5)`",
    }
    lines = []
    for work, title in titles.items():
        of = {r["way"]: r for r in rows if r["work"] == work}
        cells = [milliseconds(of["plain"]["alone_p50_s"])]
        cells += [f"{milliseconds(of[way]['p50_s'])}; {milliseconds(of[way]['p99_s'])}" for way in ways]
        cells += [f"{of[way]['busy_keep']['median']:.0%}" for way in ways]
        lines.append([title, *cells])
    heads = " | ".join(ways.values())
    return table(f"p50; p99 | alone | {heads} | the busy keep: {heads}", lines)
