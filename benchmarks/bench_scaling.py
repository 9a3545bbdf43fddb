"""How much more work do several threads do than one, under each GIL policy?

Timed: from a common start to the end of the slowest thread, each thread making the
same calls with one intra-op thread. Work per second is calls per second, except for
spin, which ends by the clock: there it is rounds of arithmetic. One thread, two, four and
so on up to the cores are measured in the same process, in turn, and compared there.

`python loop` is the row that must not scale. What is unfair: spin touches no memory,
so nothing but the cores can limit it; matmul shares caches and memory bandwidth; two threads
heat two cores, which lowers the clock on some machines; and two of a virtual machine's cores
may be one of its host's. `others` is how many cores other processes took meanwhile (Linux):
with 1 of 2 gone nothing can scale.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness


def thread_counts() -> list[int]:
    """1, 2, 4 and so on, up to the cores that this process may use."""
    import torchgil

    return [2**i for i in range(max(2, torchgil.usable_cores()).bit_length())]


def unit(op: str) -> Callable[[], float]:
    """One call of the op; returns how much work it was."""
    import torch

    import torchgil

    policies = {"released": torchgil.released, "held": torchgil.held, "adaptive": torchgil.adaptive}
    where, _, name = op.partition(".")
    if op == "python loop":

        def loop() -> float:
            for _ in range(1_000_000):
                pass
            return 1.0

        return loop
    fn = torch.matmul if op == "torch.matmul" else getattr(policies[where], name)
    if name == "spin":
        return lambda: float(fn(0.05))
    if name == "matmul":
        a, b = torch.randn(1500, 1500), torch.randn(1500, 1500)
        return lambda: (fn(a, b), 1.0)[1]
    corner = torch.rand(4000, 2) * 10_000  # spread so wide that nearly all are kept
    boxes, scores = torch.cat([corner, corner + 10 + torch.rand(4000, 2) * 30], 1), torch.rand(4000)
    return lambda: (fn(boxes, scores, 0.5), 1.0)[1]


def run(work: Callable[[], float], threads: int, calls: int) -> tuple[float, float]:
    """Work done, and seconds to the slowest thread's end."""
    import torchgil

    start = threading.Barrier(threads, timeout=120)

    def worker(_: int) -> tuple[float, float, float]:
        with torchgil.intra_op_threads(1):
            work()  # warm
            start.wait()
            begin = time.perf_counter()
            done = sum(work() for _ in range(calls))
            return done, begin, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(worker, range(threads)))
    seconds = max(end for _, _, end in results) - min(begin for _, begin, _ in results)
    return sum(done for done, _, _ in results), seconds


def others_seconds() -> float:
    """CPU seconds that all other processes, and the host, have used so far; 0 where unknown."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    except OSError:
        return 0.0
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:2])


def child(configuration: dict[str, Any]) -> dict[str, Any]:
    work = unit(configuration["op"])
    work()
    begin = time.perf_counter()
    work()
    calls = max(2, round(configuration["seconds"] / (time.perf_counter() - begin)))
    counts = thread_counts()
    samples: dict[int, list[tuple[float, float]]] = {threads: [] for threads in counts}
    others, begin = others_seconds(), time.perf_counter()
    for _ in range(configuration["repeats"]):
        for threads in counts:
            samples[threads].append(run(work, threads, calls))
    rates = {threads: [done / seconds for done, seconds in samples[threads]] for threads in counts}
    figures = {"calls": calls, "others": (others_seconds() - others) / (time.perf_counter() - begin)}
    for threads in counts:
        figures[f"seconds_{threads}"] = statistics.median(seconds for _, seconds in samples[threads])
        over_one = [rate / one for one, rate in zip(rates[1], rates[threads], strict=True)]
        figures[f"speedup_{threads}"] = statistics.median(over_one)
    return figures


OPS = (
    "released.spin",
    "held.spin",
    "released.matmul",
    "held.matmul",
    "adaptive.matmul",
    "torch.matmul",
    "released.nms",
    "held.nms",
    "python loop",
)


def parent(options: argparse.Namespace) -> None:
    configurations = {
        op: {
            "op": op,
            "seconds": 0.1 if options.quick else 0.25,
            "repeats": 1 if options.quick else max(1, 14 // thread_counts()[-1]),
        }
        for op in options.ops
    }
    results = harness.interleave(__file__, configurations, rounds=options.rounds)
    rows = [
        {"op": op, **{name: harness.spread([one[name] for one in rounds]) for name in rounds[0]}}
        for op, rounds in results.items()
    ]
    for row in rows:
        speedups = (
            f"{threads}: {row[name]['median']:.2f}x ({row[name]['min']:.2f} to {row[name]['max']:.2f})"
            for threads in thread_counts()[1:]
            for name in [f"speedup_{threads}"]
        )
        others = f"others {row['others']['median']:.2f} cores"
        print(f"{row['op']:16} {row['seconds_1']['median']:.3f} s  ", *speedups, others, sep="  ")
    print(harness.save("scaling", rows, options.json))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="which of them")


if __name__ == "__main__":
    harness.main(__doc__, child, parent, add_options)
