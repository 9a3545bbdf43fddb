"""How much more work do two threads do than one, under each GIL policy?

Timed: from a common start to the end of the slowest thread, each thread making the
same calls with one intra-op thread. Work per second is calls per second, except for
spin, which ends by the clock: there it is rounds of arithmetic. One thread and two
are measured in the same process, in turn, and compared there.

`python loop` is the row that must not scale. What is unfair: spin touches no memory,
so nothing but the cores can limit it; matmul shares caches and memory bandwidth; and
two threads heat two cores, which lowers the clock on some machines. `others` is how
many cores other processes took meanwhile (Linux): with 1 of 2 gone nothing can scale.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness

THREADS = (1, 2)


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
    samples: dict[int, list[tuple[float, float]]] = {threads: [] for threads in THREADS}
    others, begin = others_seconds(), time.perf_counter()
    for _ in range(configuration["repeats"]):
        for threads in THREADS:
            samples[threads].append(run(work, threads, calls))
    rates = {threads: [done / seconds for done, seconds in samples[threads]] for threads in THREADS}
    return {
        "calls": calls,
        "others": (others_seconds() - others) / (time.perf_counter() - begin),
        "seconds": [statistics.median(seconds for _, seconds in samples[threads]) for threads in THREADS],
        "speedup": statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True)),
    }


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


def parent(options: Any) -> None:
    configurations = {
        op: {"op": op, "seconds": 0.1 if options.quick else 0.25, "repeats": 1 if options.quick else 7}
        for op in OPS
    }
    results = harness.interleave(__file__, configurations, rounds=options.rounds)
    rows = [
        {
            "op": op,
            "calls": harness.spread([one["calls"] for one in rounds]),
            "speedup": harness.spread([one["speedup"] for one in rounds]),
            "others": harness.spread([one["others"] for one in rounds]),
            **{
                f"seconds_{threads}": harness.spread([one["seconds"][i] for one in rounds])
                for i, threads in enumerate(THREADS)
            },
        }
        for op, rounds in results.items()
    ]
    for row in rows:
        speedup = row["speedup"]
        print(
            f"{row['op']:16} 1 thread {row['seconds_1']['median']:.3f} s   2 threads "
            f"{row['seconds_2']['median']:.3f} s   {speedup['median']:.2f}x "
            f"({speedup['min']:.2f} to {speedup['max']:.2f})   others {row['others']['median']:.2f} cores"
        )
    print(harness.save("scaling", rows, options.json))


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
