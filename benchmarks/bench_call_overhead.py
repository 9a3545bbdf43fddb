"""What does one call cost, and what does its release of the GIL?

Three questions, each a row of ratios within one process:

- `call`: nanoseconds of an add of 4x4 by each path, in a bare loop that frees the
  result, no other thread. `python function` is a call of an empty Python function:
  what the loop and a call cost before any tensor is touched. It is part of every
  figure, so the ratios are a little nearer to 1 than those of the calls themselves.
- `release`: nanoseconds of one release and reacquire in a loop in C++, uncontended:
  the window of a `released` call against Py_BEGIN_ALLOW_THREADS/Py_END_ALLOW_THREADS.
- `beside`: p50 and p99 of one call alone and beside a thread that is busy in Python,
  results kept (freeing one releases the GIL too). The clock's two reads are in it,
  which favours the slower path. The busy thread's wake-up latency decides how often a
  short release loses the GIL; `lost` is the share of calls that took over half a
  switch interval.

Unlike the other benchmarks here, all paths of a question run in one process, in
turn: they differ by a few per cent, as two processes of the same path do.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

import harness


def paths() -> dict[str, Any]:
    import torch

    import torchgil

    def nothing(a, b):
        return a

    return {
        "torch.add": torch.add,
        "released.add": torchgil.released.add,
        "held.add": torchgil.held.add,
        "adaptive.add": torchgil.adaptive.add,
        "torch.ops.torchgil.add": torch.ops.torchgil.add,
        "torch.ops.aten.add.Tensor": torch.ops.aten.add.Tensor,
        "python function": nothing,
    }


def measure_calls(configuration: dict[str, Any]) -> dict[str, float]:
    """Path -> median nanoseconds of a call over `repeats` loops, the paths in turn."""
    import torch

    a, b = torch.randn(4, 4), torch.randn(4, 4)
    samples: dict[str, list[float]] = {name: [] for name in paths()}
    for _ in range(configuration["repeats"]):
        for name, fn in paths().items():
            loop = itertools.repeat(None, configuration["calls"])
            begin = time.perf_counter_ns()
            for _ in loop:
                fn(a, b)
            samples[name].append((time.perf_counter_ns() - begin) / configuration["calls"])
    return {name: statistics.median(values) for name, values in samples.items()}


def measure_release(configuration: dict[str, Any]) -> dict[str, float]:
    """Kind of release -> median nanoseconds of one pair, the kinds in turn."""
    sys.path.insert(0, configuration["folder"])
    import release_cost

    kinds = {"raw pair": release_cost.raw, "released's window": release_cost.window}
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(configuration["repeats"]):
        for name, fn in kinds.items():
            samples[name].append(fn(configuration["calls"]))
    return {name: statistics.median(values) for name, values in samples.items()}


def measure_beside(configuration: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Path -> p50 and p99 in seconds, alone and beside a busy thread, the paths in turn."""
    import torch

    a, b = torch.randn(4, 4), torch.randn(4, 4)
    alone: dict[str, list[float]] = {}
    beside: dict[str, list[float]] = {}
    stop = False

    def busy() -> None:
        count = 0
        while not stop:
            count += 1

    for _ in range(configuration["repeats"]):
        for name, fn in paths().items():
            alone.setdefault(name, []).extend(call_times(fn, a, b, configuration["calls"]))
        stop = False
        thread = threading.Thread(target=busy)
        thread.start()
        for name, fn in paths().items():
            beside.setdefault(name, []).extend(call_times(fn, a, b, configuration["calls"]))
        stop = True
        thread.join()
    limit = sys.getswitchinterval() / 2
    return {
        name: {
            "alone_p50_s": harness.quantile(alone[name], 0.5),
            "alone_p99_s": harness.quantile(alone[name], 0.99),
            "beside_p50_s": harness.quantile(beside[name], 0.5),
            "beside_p99_s": harness.quantile(beside[name], 0.99),
            "lost": sum(took > limit for took in beside[name]) / len(beside[name]),
            "calls": len(beside[name]),
        }
        for name in beside
    }


def call_times(fn: Any, a: Any, b: Any, calls: int, seconds: float = 1.0) -> list[float]:
    """Seconds of each call; stopped early where each loses the GIL for milliseconds."""
    clock = time.perf_counter
    times, kept = [], []
    end = clock() + seconds
    for _ in range(calls):
        begin = clock()
        result = fn(a, b)
        done = clock()
        times.append(done - begin)
        kept.append(result)
        del result
        if done > end:
            break
    return times


MEASURES = {"call": measure_calls, "release": measure_release, "beside": measure_beside}


def child(configuration: dict[str, Any]) -> Any:
    return MEASURES[configuration["question"]](configuration)


def parent(options: Any) -> None:
    quick = options.quick
    with tempfile.TemporaryDirectory() as folder:
        harness.compile_cpp("release_cost.cpp", folder)
        configurations = {
            # Short loops in quick turn: what else the machine does meets all paths alike.
            "call": {"question": "call", "calls": 500, "repeats": 20 if quick else 300},
            "release": {
                "question": "release",
                "folder": folder,
                "calls": 10_000 if quick else 1_000_000,
                "repeats": 3 if quick else 9,
            },
            "beside": {"question": "beside", "calls": 200 if quick else 2000, "repeats": 1 if quick else 2},
        }
        results = harness.interleave(__file__, configurations, rounds=options.rounds)
    rows = [
        *ratios("call", results["call"], "torch.add"),
        *ratios("release", results["release"], "raw pair"),
        *beside(results["beside"]),
    ]
    for row in rows:
        if row["question"] == "beside":
            times = (row[key]["median"] * 1e6 for key in BESIDE_TIMES)
            shown = "".join(f"{time_us:11.2f}" for time_us in times)
            print(f"beside   {row['path']:26}{shown} us   {row['lost']['median']:4.0%} lost")
        else:
            ns, ratio = row["ns"]["median"], row["ratio"]
            print(
                f"{row['question']:8} {row['path']:26}{ns:8.0f} ns   "
                f"{ratio['median']:5.3f}x ({ratio['min']:.3f} to {ratio['max']:.3f})"
            )
    print(harness.save("call_overhead", rows, options.json))


BESIDE_TIMES = ("alone_p50_s", "alone_p99_s", "beside_p50_s", "beside_p99_s")


def ratios(question: str, rounds: list[dict[str, float]], base: str) -> list[dict[str, Any]]:
    """One row per path: nanoseconds, and the ratio to the base within each round."""
    return [
        {
            "question": question,
            "path": path,
            "ns": harness.spread([one[path] for one in rounds]),
            "ratio": harness.spread([one[path] / one[base] for one in rounds]),
        }
        for path in rounds[0]
    ]


def beside(rounds: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """One row per path; p99_ratio: beside the busy thread over alone, within each round."""
    return [
        {
            "question": "beside",
            "path": path,
            **{key: harness.spread([one[path][key] for one in rounds]) for key in (*BESIDE_TIMES, "lost")},
            "p99_ratio": harness.spread(
                [one[path]["beside_p99_s"] / one[path]["alone_p99_s"] for one in rounds]
            ),
        }
        for path in rounds[0]
    ]


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
