"""Section 2: what threads bring, op by op and policy by policy."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from torchgil._threads import intra_op_threads
from torchgil.demo._monitor import Monitor, idle_ticks_per_second
from torchgil.demo._policies import calls_of
from torchgil.ops import held

__all__ = ["THREADS", "Scaling", "ScalingCell", "ScalingRow", "measure"]

THREADS = (1, 2, 4)
POLICIES = ("held", "released", "adaptive")

# Called by each thread once per unit of work; returns how much work that was.
Unit = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ScalingCell:
    """One op under one policy on so many threads, median over the rounds.

    Attributes:
        threads: Python threads, each doing the same calls.
        seconds: From the common start to the end of the slowest thread.
        speedup: Work per second over the same round's on one thread. For spin, which
            ends by the clock, work is its rounds of arithmetic: sharing a core halves it.
        ticks_per_s: What the monitor got meanwhile.
    """

    threads: int
    seconds: float
    speedup: float
    ticks_per_s: float


@dataclass(frozen=True, slots=True)
class ScalingRow:
    op: str
    policy: str
    cells: tuple[ScalingCell, ...]


@dataclass(frozen=True, slots=True)
class Scaling:
    """Section 2.

    Attributes:
        calls: Calls that each thread makes, of about 10 ms each.
        rounds: How often everything was measured, in turn.
        idle_ticks_per_s: The monitor's rate while nothing else runs.
        rows: One per op and policy.
    """

    calls: int
    rounds: int
    idle_ticks_per_s: float
    rows: tuple[ScalingRow, ...]


def measure(size: int, calls: int, rounds: int, progress: Callable[[str], None]) -> Scaling:
    """Runs each op under each policy on 1, 2 and 4 threads.

    Args:
        size: n of the [n, n] matrices for matmul.
        calls: Calls per thread.
        rounds: Repetitions; all configurations are visited in turn.
        progress: Told what is measured next.
    """
    units = {(op, policy): unit for op in _OPS for policy, unit in _OPS[op](size).items()}
    samples: dict[tuple[str, str, int], list[ScalingCell]] = {}
    for _ in range(rounds):
        for (op, policy), unit in units.items():
            alone = 0.0
            for threads in THREADS:
                progress(f"threads: {policy}.{op} x {threads}")
                work, seconds, ticks = _run(unit, threads, calls)
                alone = alone or work / seconds
                cell = ScalingCell(threads, seconds, work / seconds / alone, ticks)
                samples.setdefault((op, policy, threads), []).append(cell)
    rows = tuple(
        ScalingRow(op, policy, tuple(_median(samples[op, policy, threads]) for threads in THREADS))
        for op, policy in units
    )
    return Scaling(calls, rounds, idle_ticks_per_second(), rows)


def _median(cells: list[ScalingCell]) -> ScalingCell:
    return ScalingCell(
        cells[0].threads,
        statistics.median(cell.seconds for cell in cells),
        statistics.median(cell.speedup for cell in cells),
        statistics.median(cell.ticks_per_s for cell in cells),
    )


def _matmul(size: int) -> dict[str, Unit]:
    a, b = torch.randn(size, size), torch.randn(size, size)

    def unit(policy: str) -> Unit:
        fn = calls_of("matmul")[policy]
        return lambda: (fn(a, b), 1.0)[1]

    return {policy: unit(policy) for policy in POLICIES}


def _spin(_: int) -> dict[str, Unit]:
    def unit(policy: str) -> Unit:
        fn = calls_of("spin")[policy]
        return lambda: float(fn(0.010))

    return {policy: unit(policy) for policy in POLICIES}


def _nms(_: int) -> dict[str, Unit]:
    # 10 ms of nms: spread so wide that nearly all boxes are kept, the time grows with n * n.
    boxes = _boxes(1000)
    begin = time.perf_counter()
    held.nms(boxes, torch.rand(1000), 0.5)
    took = time.perf_counter() - begin
    count = int(max(200, min(20_000, 1000 * (0.010 / took) ** 0.5)))
    boxes, scores = _boxes(count), torch.rand(count)

    def unit(policy: str) -> Unit:
        fn = calls_of("nms")[policy]
        return lambda: (fn(boxes, scores, 0.5), 1.0)[1]

    return {policy: unit(policy) for policy in POLICIES}


def _boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 10_000
    return torch.cat([corner, corner + 10 + torch.rand(count, 2) * 30], 1)


_OPS: dict[str, Callable[[int], dict[str, Unit]]] = {"matmul": _matmul, "spin": _spin, "nms": _nms}


def _run(unit: Unit, threads: int, calls: int) -> tuple[float, float, float]:
    """Work done, seconds to the slowest thread's end, and the monitor's ticks per second."""
    start = threading.Barrier(threads, timeout=60)

    def worker(_: int) -> tuple[float, int, int]:
        with intra_op_threads(1):
            unit()  # warm
            start.wait()
            begin = time.monotonic_ns()
            work = sum(unit() for _ in range(calls))
            return work, begin, time.monotonic_ns()

    with Monitor() as monitor, ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(worker, range(threads)))
    begin, end = min(one[1] for one in done), max(one[2] for one in done)
    return sum(one[0] for one in done), (end - begin) * 1e-9, monitor.rate(begin, end)
