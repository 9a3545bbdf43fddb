"""What do the trace and the watchdog cost, next to torch.profiler, py-spy and gilknocker?

Question 1: the forward of a 4-layer transformer encoder (d=128, 2x32 tokens, inference
mode, one intra-op thread) with the tool running, over the same without it. In each fresh
process blocks of forwards without and with the tool take turns, so that drift of the
machine meets both; a process's figure is the median of its blocks' ratios. Inside the
timed region: the forward alone. Starting and stopping the tool, and turning its record
into a report, are outside.

Question 2: what the trace adds to one release and reacquire: what `released.spin(0)`
takes over `held.spin(0)`, traced, less the same untraced. Both are the same op, so that
its own events cancel out.

Question 3: what share of a core the watchdog's threads take, by the kernel's own account
(Linux), and how often it asks for the GIL: in a process that sleeps, in one that runs the
forward, and in one that is busy in Python.

Question 4: where the time goes that a traced op takes more: what torch itself takes to call an
observer that does nothing, two reads of the clock, the question whether the GIL is held, the op's
name; the rest is the record. Views of views, called from C++.

Rows "none" (the tool is nothing) and "after a trace" (one was run, and ended, before the
blocks with it) show the noise, and what is left behind. Unfair: torch.profiler sees no
GIL, py-spy and gilknocker see no op; py-spy works in a process of its own, on the second
core if there is one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

FORWARDS = 40
BLOCKS = 7
PROGRAMS = ("sleeps", "runs the forward", "is busy in Python")  # in which the watchdog watches


class _Nothing:
    def start(self) -> None: ...
    def stop(self) -> None: ...


class _Trace:
    def __init__(self, ops: bool = True) -> None:
        self._ops = ops

    def start(self) -> None:
        import torchgil

        self._trace = torchgil.trace(ops=self._ops)
        self._trace.__enter__()

    def stop(self) -> None:
        self._trace.__exit__(None, None, None)


class _AfterTrace:
    def start(self) -> None:
        trace = _Trace()
        trace.start()
        trace.stop()

    def stop(self) -> None: ...


class _Watchdog:
    def start(self) -> None:
        import torchgil

        self._watchdog = torchgil.Watchdog(on_hold=lambda hold: None)
        self._watchdog.start()

    def stop(self) -> None:
        self._watchdog.stop()


class _Profiler:
    def start(self) -> None:
        import torch

        activities = [torch.profiler.ProfilerActivity.CPU]
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.__enter__()

    def stop(self) -> None:
        self._profiler.__exit__(None, None, None)


class _PySpy:
    def start(self) -> None:
        import os

        command = [
            str(Path(sys.executable).parent / "py-spy"),
            "record",
            "--gil",
            "--rate",
            "100",
            "--duration",
            "60",
            "--format",
            "raw",
        ]
        self._process = subprocess.Popen(
            [*command, "--output", os.devnull, "--pid", str(os.getpid())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(1)  # it reads the process's symbols first
        if self._process.poll() is not None:
            raise RuntimeError(f"py-spy: {self._process.communicate()[1].decode()}")

    def stop(self) -> None:
        import signal

        self._process.send_signal(signal.SIGINT)
        self._process.communicate()


class _Gilknocker:
    def start(self) -> None:
        from gilknocker import KnockKnock

        self._knocker = KnockKnock(polling_interval_micros=1000)
        self._knocker.start()

    def stop(self) -> None:
        self._knocker.stop()


TOOLS: dict[str, Callable[[], Any]] = {
    "none": _Nothing,
    "after a trace": _AfterTrace,
    "torchgil.trace": _Trace,
    "torchgil.trace(ops=False)": lambda: _Trace(ops=False),
    "torchgil.Watchdog": _Watchdog,
    "torch.profiler": _Profiler,
    "py-spy": _PySpy,
    "gilknocker": _Gilknocker,
}


def _forward() -> Callable[[], Any]:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    x = torch.randn(2, 32, 128)
    return lambda: model(x)


def child(configuration: dict[str, Any]) -> Any:
    if configuration["question"] == "forward":
        return _forward_ratio(configuration["tool"], configuration["blocks"])
    if configuration["question"] == "watchdog":
        return _watchdog_share(configuration["program"], configuration["seconds"])
    if configuration["question"] == "op":
        return _op_cost(configuration["folder"], configuration["blocks"])
    return _pair_cost(configuration["blocks"])


def _forward_ratio(name: str, blocks: int) -> dict[str, float]:
    import torch

    tool = TOOLS[name]()
    forward = _forward()

    def block() -> float:
        times = []
        for _ in range(FORWARDS):
            start = time.perf_counter()
            forward()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    ratios, without = [], []
    with torch.inference_mode():
        block()
        for _ in range(blocks):
            off = block()
            tool.start()
            forward()  # the first with the tool sets it up
            on = block()
            tool.stop()
            ratios.append(on / off)
            without.append(off)
    return {"ratio": statistics.median(ratios), "forward_ms": statistics.median(without) * 1e3}


def _pair_cost(blocks: int) -> dict[str, float]:
    import torchgil

    n = 3000

    def pair() -> float:
        def per_call(spin: Callable[[float], int]) -> float:
            start = time.perf_counter_ns()
            for _ in range(n):
                spin(0)
            return (time.perf_counter_ns() - start) / n

        differences = [per_call(torchgil.released.spin) - per_call(torchgil.held.spin) for _ in range(15)]
        return statistics.median(differences)

    untraced, traced = [], []
    pair()
    for _ in range(blocks):
        untraced.append(pair())
        with torchgil.trace(max_events=2_000_000):
            traced.append(pair())
    return {
        "untraced_ns": statistics.median(untraced),
        "traced_ns": statistics.median(traced),
        "added_ns": statistics.median(t - u for t, u in zip(traced, untraced, strict=True)),
    }


def _op_cost(folder: str, blocks: int) -> dict[str, float]:
    """Nanoseconds that each part adds to an op; the least of the blocks, which take turns."""
    import torch

    import torchgil

    sys.path.insert(0, folder)
    import dispatch_cost

    x, count = torch.zeros(4), 50_000

    def traced() -> float:
        with torchgil.trace(max_events=1_000_000):
            return float(dispatch_cost.seconds_per_view(x, count))

    ways: dict[str, Callable[[], float]] = {
        "untraced": lambda: dispatch_cost.seconds_per_view(x, count),
        "observed": lambda: dispatch_cost.observed(x, count),
        "clock": lambda: dispatch_cost.observed_clock(x, count),
        "gil": lambda: dispatch_cost.observed_gil(x, count),
        "name": lambda: dispatch_cost.observed_name(x, count),
        "traced": traced,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3 + 4 * blocks):
        for name, way in ways.items():
            times[name].append(way() * 1e9)
    ns = {name: min(each) for name, each in times.items()}
    parts = {
        "observer_ns": ns["observed"] - ns["untraced"],
        **{f"{name}_ns": ns[name] - ns["observed"] for name in ("clock", "gil", "name")},
    }
    added = ns["traced"] - ns["untraced"]
    return {"op_ns": ns["untraced"], "added_ns": added, **parts, "record_ns": added - sum(parts.values())}


def _watchdog_share(program: str, seconds: float) -> dict[str, float]:
    import torch

    import torchgil

    work = {
        "sleeps": lambda: time.sleep(0.1),
        "runs the forward": _forward(),
        "is busy in Python": lambda: None,
    }
    step = work[program]
    with torch.inference_mode(), torchgil.Watchdog(on_hold=lambda hold: None) as watchdog:
        before, start = _on_core_s("torchgil-"), time.perf_counter()
        while time.perf_counter() - start < seconds:
            step()
        wall = time.perf_counter() - start
        share = (_on_core_s("torchgil-") - before) / wall
        return {"share_of_a_core": share, "knocks_per_s": watchdog.knocks / wall}


def _on_core_s(prefix: str) -> float:
    """CPU seconds of this process's threads whose name the system knows by this prefix."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith(prefix):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def parent(options: argparse.Namespace) -> None:
    blocks = 1 if options.quick else BLOCKS
    peers = harness.versions("py-spy", "gilknocker")
    harness.stay_where_missing(options, peers)
    missing = [tool for tool, version in peers.items() if version is None]
    configurations = {
        tool: {"question": "forward", "tool": tool, "blocks": blocks} for tool in TOOLS if tool not in missing
    }
    configurations["pair"] = {"question": "pair", "blocks": blocks}
    programs = PROGRAMS[: 1 if options.quick else None] if sys.platform == "linux" else ()
    for program in programs:
        configurations[program] = {
            "question": "watchdog",
            "program": program,
            "seconds": 1 if options.quick else 10,
        }
    with tempfile.TemporaryDirectory() as folder:
        harness.compile_cpp("dispatch_cost.cpp", folder)
        configurations["op"] = {"question": "op", "blocks": blocks, "folder": folder}
        results = harness.interleave(__file__, configurations, rounds=options.rounds)
    pairs, ops = results.pop("pair"), results.pop("op")
    shares = {program: results.pop(program) for program in programs}
    rows: list[dict[str, Any]] = [
        {
            "question": "forward",
            "tool": tool,
            "ratio": harness.spread([r["ratio"] for r in rounds]),
            "forward_ms": harness.spread([r["forward_ms"] for r in rounds]),
        }
        for tool, rounds in results.items()
    ]
    rows.append({"question": "pair", **{key: harness.spread([p[key] for p in pairs]) for key in pairs[0]}})
    rows.append({"question": "op", **{key: harness.spread([o[key] for o in ops]) for key in ops[0]}})
    for program, rounds in shares.items():
        share = {key: harness.spread([r[key] for r in rounds]) for key in rounds[0]}
        rows.append({"question": "watchdog", "program": program, **share})
    why = "not installed: pip install 'torchgil[bench]'"
    rows += [{"question": "forward", "tool": tool, "missing": why} for tool in missing]
    path = harness.save("tracing", rows, options.json, peers=peers)
    for row in rows:
        if "ratio" in row:
            r = row["ratio"]
            print(f"{row['tool']:25} {r['median']:.3f}x  ({r['min']:.3f} to {r['max']:.3f})")
        elif "missing" in row:
            print(f"{row['tool']:25} {row['missing']}")
        elif row["question"] == "watchdog":
            share, knocks = row["share_of_a_core"], row["knocks_per_s"]
            print(
                f"the watchdog in a process that {row['program']}: {100 * share['median']:.2f} % of a core "
                f"({100 * share['min']:.2f} to {100 * share['max']:.2f}), "
                f"{knocks['median']:.1f} knocks a second"
            )
        elif row["question"] == "op":
            ns = {key: value["median"] for key, value in row.items() if key.endswith("_ns")}
            print(
                f"an op of {ns['op_ns']:.0f} ns takes {ns['added_ns']:.0f} ns more traced: torch's calls of "
                f"an observer {ns['observer_ns']:.0f}, two clock reads {ns['clock_ns']:.0f}, is the GIL held "
                f"{ns['gil_ns']:.0f}, its name {ns['name_ns']:.0f}, the record {ns['record_ns']:.0f}"
            )
        else:
            added = row["added_ns"]
            print(
                f"one release and reacquire: {row['untraced_ns']['median']:.0f} ns untraced, "
                f"{added['median']:.0f} ns more traced ({added['min']:.0f} to {added['max']:.0f})"
            )
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
