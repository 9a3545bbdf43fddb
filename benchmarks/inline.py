"""The figures within the sentences of README.md and docs/, from kept results. Measures nothing.

In a page a figure is followed by a comment that names it: `1.09<!-- tracing: traced -->x`. What stands before
the comment, as far back as it is a number or a date, is put there by plots.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import kept

Figure = Callable[[Any], str]

_MARKED = re.compile(
    rf"(?P<figure>[\d,.-]*\d(?:, {kept.OLDER})?)(?P<mark><!-- (?P<result>\w+): (?P<name>[\w ]+) -->)"
)


def filled(text: str, results: Mapping[str, Any]) -> str:
    """The text with each marked figure as these results have it."""

    def fill(found: re.Match[str]) -> str:
        result, name = found["result"], found["name"]
        if name == "date":
            return kept.when(result, results[result]) + found["mark"]
        return INLINE[f"{result}: {name}"](results[result]["rows"]) + found["mark"]

    return _MARKED.sub(fill, text)


def marks(text: str) -> list[str]:
    """What the comments name, filled or not: one that stands behind no figure is a mistake."""
    return re.findall(r"(?<!^)<!-- (\w+: [\w ]+) -->", text, re.MULTILINE)


def _row(rows: Any, **wanted: Any) -> Any:
    (found,) = [r for r in rows if all(r.get(key) == value for key, value in wanted.items())]
    return found


def _tool(tool: str, end: str = "median") -> Figure:
    """How much longer a forward takes while it is watched."""
    return lambda rows: f"{_row(rows, question='forward', tool=tool)['ratio'][end]:.2f}"


def _watchdog(program: str) -> Figure:
    """Of a core, in percent."""
    return lambda rows: f"{100 * _row(rows, program=program)['share_of_a_core']['median']:.1f}"


def _transformer(way: str, key: str, digits: int) -> Figure:
    """Milliseconds of a forward."""
    return lambda rows: f"{1e3 * rows['table']['transformer'][way][key]['median']:.{digits}f}"


def _compared(key: str, name: str, over: str) -> Figure:
    """A contender's figure over another's."""
    return lambda rows: f"{_contender(rows, name)[key]['median'] / _contender(rows, over)[key]['median']:.2f}"


def _contender(rows: Any, name: str) -> Any:
    return _row(rows, name=name)


def _rate(name: str) -> Figure:
    return lambda rows: f"{_contender(rows, name)['requests_per_s']['median']:.1f}"


def _pool(key: str) -> Figure:
    """Two threads an op over one, with two workers on two cores."""
    return lambda rows: (
        f"{_row(rows, row='2 x 2')[key]['median'] / _row(rows, row='2 x 1')[key]['median']:.2f}"
    )


def _pays(policy: str, beside: str) -> Figure:
    """Microseconds of the shortest op from which on two threads do a tenth more than one core's work."""

    def figure(rows: Any) -> str:
        shortest = None
        for size in sorted(rows[policy], key=int, reverse=True):
            if rows[policy][size][beside]["median"] < 1.1:
                break
            shortest = rows[policy][size]["alone_us"]["median"]
        return f"{shortest:.0f}"

    return figure


def _at_rest(key: str, factor: float, worst: str) -> Figure:
    """Of what a first block, or a release after it, takes: the largest of the rows, or the least."""
    pick = max if worst == "max" else min
    return lambda rows: f"{factor * pick(r[key][worst] for r in rows if key in r):.0f}"


_THREADS, _PROCESSES = "2 x 1 threads, nogil", "2 processes"

INLINE: dict[str, Figure] = {
    "tracing: traced": _tool("torchgil.trace"),
    "tracing: without ops": _tool("torchgil.trace(ops=False)"),
    "tracing: profiler": _tool("torch.profiler"),
    "tracing: py spy": _tool("py-spy"),
    "tracing: gilknocker": _tool("gilknocker"),
    "tracing: nothing": _tool("none"),
    "tracing: nothing at least": _tool("none", "min"),
    "tracing: nothing at most": _tool("none", "max"),
    "tracing: pair": lambda rows: f"{_row(rows, question='pair')['added_ns']['median']:.0f}",
    "tracing: watchdog beside a sleeper": _watchdog("sleeps"),
    "tracing: watchdog beside forwards": _watchdog("runs the forward"),
    "tracing: watchdog beside a busy one": _watchdog("is busy in Python"),
    "forward: eager alone": _transformer("eager", "p50_s", 1),
    "forward: eager beside": _transformer("eager", "busy_default_p50_s", 0),
    "forward: eager short interval": _transformer("eager", "busy_100us_p50_s", 1),
    "forward: priority beside": _transformer("priority", "busy_default_p50_s", 1),
    "priority: eager": lambda rows: (
        f"{1e3 * _row(rows, work='eager', way='plain', workers=1, busy=1)['p50_s']['median']:.0f}"
    ),
    "priority: first block at least": _at_rest("first_block_s", 1e3, "min"),
    "priority: first block at most": _at_rest("first_block_s", 1e3, "max"),
    "priority: release added": _at_rest("release_added_s", 1e9, "max"),
    "call_overhead: release": lambda rows: f"{_row(rows, path='raw pair')['ns']['median']:.0f}",
    "crossover: short interval": _pays("released", "busy_100us"),
    "crossover: priority": _pays("priority", "busy_5ms"),
    "crossover: priority beside two": _pays("priority", "two_busy_5ms"),
    "pool: rate": _pool("forwards_per_s"),
    "pool: processor time": _pool("cpu_ms"),
    "pool: eager at least": lambda rows: f"{_row(rows, row='eager, busy, 5 ms')['p50_ms']['min']:.0f}",
    "pool: eager at most": lambda rows: f"{_row(rows, row='eager, busy, 5 ms')['p50_ms']['max']:.0f}",
    "threads_vs_processes: one thread": _rate("1 thread, 1 intra-op"),
    "threads_vs_processes: two threads": _rate("2 x 1 threads, eager"),
    "threads_vs_processes: rate": _compared("requests_per_s", _THREADS, _PROCESSES),
    "threads_vs_processes: shared": _compared("requests_per_s", _THREADS, f"{_PROCESSES}, shared weights"),
    "threads_vs_processes: memory": _compared("pss_mb", _THREADS, _PROCESSES),
    "threads_vs_processes: shared memory": _compared("pss_mb", _THREADS, f"{_PROCESSES}, shared weights"),
    "threads_vs_processes: batching": _compared("requests_per_s", f"{_THREADS}, batching", _PROCESSES),
    "threads_vs_processes: start": _compared("start_up_s", _THREADS, _PROCESSES),
    "threads_vs_processes: eager start": _compared("start_up_s", "2 x 1 threads, eager", _PROCESSES),
    "threads_vs_processes: batching alone": _compared(
        "requests_per_s", "2 x 1 threads, batching", "2 x 1 threads, eager"
    ),
    "threads_vs_processes: batching nogil": _compared("requests_per_s", f"{_THREADS}, batching", _THREADS),
}
