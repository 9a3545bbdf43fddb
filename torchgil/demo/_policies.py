"""Section 1: who gets the GIL while an op runs, event by event."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torchgil.demo._monitor import Monitor
from torchgil.ops import adaptive, held, released, witness

__all__ = ["Policies", "PolicyRun", "calls_of", "matmul_size", "measure"]

# Twice the interpreter's switch interval, so that a held op keeps the GIL longer than any
# waiting thread can be put off by preemption alone.
OP_SECONDS = 0.010

Op = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """Ops called back to back under one policy, beside the monitor.

    Attributes:
        policy: held, released, adaptive or torch.ops.
        kernel_held_gil: What the kernels themselves saw: whether their thread held the GIL.
        ops: (start, end) of each op in seconds since the first one's start.
        ticks: When the monitor got the GIL between the first start and the last end, likewise.
    """

    policy: str
    kernel_held_gil: bool
    ops: tuple[tuple[float, float], ...]
    ticks: tuple[float, ...]

    @property
    def wall_s(self) -> float:
        return self.ops[-1][1]

    @property
    def events(self) -> str:
        """A dot per tick and a cross per finished op, in the order in which they happened."""
        crosses = [(end, "X") for _, end in self.ops]
        dots = [(tick, ".") for tick in self.ticks]
        return "".join(mark for _, mark in sorted(crosses + dots))


@dataclass(frozen=True, slots=True)
class Policies:
    """Section 1.

    Attributes:
        size: n of the [n, n] matrices multiplied, float32.
        op_s: Median seconds of one product.
        runs: One per policy.
    """

    size: int
    op_s: float
    runs: tuple[PolicyRun, ...]


def calls_of(op: str) -> dict[str, Op]:
    """The same op by each path: policy -> callable."""
    return {
        "held": getattr(held, op),
        "released": getattr(released, op),
        "adaptive": getattr(adaptive, op),
        "torch.ops": getattr(torch.ops.torchgil, op),
    }


def matmul_size(seconds: float = OP_SECONDS) -> int:
    """n for which a product of [n, n] matrices takes about that long on this machine."""
    size = 256
    for _ in range(3):  # the rate grows with the size, so ask again where the answer led
        matrix = torch.ones(size, size)
        held.matmul(matrix, matrix)  # warm
        took = min(_seconds(held.matmul, matrix) for _ in range(3))
        size = max(64, min(4096, round(size * (seconds / took) ** (1 / 3) / 32) * 32))
    return size


def _seconds(fn: Op, matrix: torch.Tensor) -> float:
    begin = time.perf_counter()
    fn(matrix, matrix)
    return time.perf_counter() - begin


def measure(size: int, calls: int, progress: Callable[[str], None]) -> Policies:
    """Calls the product `calls` times under each policy, with the monitor beside it.

    Args:
        size: n of the [n, n] matrices.
        calls: Number of products per policy.
        progress: Told what is measured next.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    runs = []
    for policy, fn in calls_of("matmul").items():
        progress(f"monitor: {policy}")
        fn(a, b)  # warm
        runs.append(_run(policy, fn, a, b, calls))
    return Policies(
        size, statistics.median(end - start for run in runs for start, end in run.ops), tuple(runs)
    )


def _run(policy: str, fn: Op, a: torch.Tensor, b: torch.Tensor, calls: int) -> PolicyRun:
    # map() calls the op from C and keeps its results: between two ops no bytecode runs, where the
    # interpreter could make the thread give way, and no result is freed, which would release too.
    with Monitor() as monitor, witness() as kernels:
        list(map(fn, [a] * calls, [b] * calls))
    origin, last = kernels[0].begin_ns, kernels[-1].end_ns
    return PolicyRun(
        policy,
        kernels[0].held_gil,
        tuple(((k.begin_ns - origin) * 1e-9, (k.end_ns - origin) * 1e-9) for k in kernels),
        tuple((tick - origin) * 1e-9 for tick in monitor.between(origin, last)),
    )
