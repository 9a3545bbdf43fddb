"""Section 3: what a release costs beside a thread that is busy in Python."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from torchgil._priority import gil_priority
from torchgil._statistics import quantile
from torchgil._threads import intra_op_threads
from torchgil._wakeup import WakeupLatency, wakeup_latency
from torchgil.ops import adaptive, held, released
from torchgil.tracing import audit

__all__ = ["Contention", "ContentionRow", "measure"]

SIZES = (4, 512)
# Results that are kept are freed between two measurements, not within one: to free releases the GIL, too.
KEPT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ContentionRow:
    """One way to call add, alone and beside a busy Python thread.

    Attributes:
        call: How it is called.
        size: n of the [n, n] float32 tensors.
        calls: Calls measured beside the busy thread.
        alone_p50_s: Median seconds of a call while no other thread runs.
        p50_s: The same beside the busy thread.
        p99_s: 99th percentile beside the busy thread, nearest rank.
        lost: Share of those calls that took over half a switch interval: they gave the GIL
            away and had to wait for it.
        takes: How often one call takes the GIL, counted by the trace while alone;
            None where it cannot be counted.
        busy_kept: What the busy thread did meanwhile, over what it does with nobody beside it.
    """

    call: str
    size: int
    calls: int
    alone_p50_s: float
    p50_s: float
    p99_s: float
    lost: float
    takes: float | None
    busy_kept: float


@dataclass(frozen=True, slots=True)
class Contention:
    """Section 3."""

    switch_interval_s: float
    wake_up: WakeupLatency
    rows: tuple[ContentionRow, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    fn: Callable[[torch.Tensor, torch.Tensor], Any]
    keep: bool
    priority: bool = False


def _calls() -> tuple[_Call, ...]:
    return (
        _Call("torch.add, freed", torch.add, keep=False),
        _Call("with gil_priority()", torch.add, keep=False, priority=True),
        _Call("torch.add", torch.add, keep=True),
        _Call("torch.ops.aten.add", torch.ops.aten.add.Tensor, keep=True),
        _Call("released.add", released.add, keep=True),
        _Call("held.add", held.add, keep=True),
        _Call("adaptive.add", adaptive.add, keep=True),
    )


@contextmanager
def busy_thread() -> Iterator[list[int]]:
    """Another thread counts in Python for as long as the block lasts; the list has how far it has come."""
    stop = False
    running = threading.Event()
    counted = [0]

    def run() -> None:
        running.set()
        while not stop:
            counted[0] += 1

    thread = threading.Thread(target=run, name="torchgil-demo-busy", daemon=True)
    thread.start()
    running.wait()
    try:
        yield counted
    finally:
        stop = True
        thread.join()


def measure(calls: int, seconds: float, progress: Callable[[str], None]) -> Contention:
    """Times add by every path, alone and beside a busy thread.

    Args:
        calls: Calls of each kind.
        seconds: Each kind is stopped after that long, so that a machine on which every call
            loses the GIL three times does not take three times as long.
        progress: Told what is measured next.
    """
    progress("thread wake-up latency")
    wake_up = wakeup_latency()
    rows = []
    with intra_op_threads(1):
        for size in SIZES:
            a, b = torch.randn(size, size), torch.randn(size, size)
            for call in _calls():
                progress(f"beside a busy thread: {call.name} {size}x{size}")
                _times(call, a, b, 20, seconds, [])  # warm
                alone = _times(call, a, b, calls, seconds, [])
                kept: list[Any] = []  # freed after the busy thread's end: beside it each free would be a wait
                with busy_thread() as counted:
                    free = 0.0
                    while not free:  # on a loaded machine the thread may not get a core within that time
                        # Measured anew for each thread, since the speed of a processor changes.
                        free = _per_second(counted, partial(time.sleep, seconds / 8))
                    with gil_priority() if call.priority else nullcontext():
                        beside = _times(call, a, b, calls, seconds, kept)
                        # Timed separately, since a few calls of microseconds are too short to count in.
                        left = _per_second(counted, partial(_times, call, a, b, 1 << 40, seconds / 8, kept))
                kept.clear()
                rows.append(_row(call, size, alone, beside, _takes(call, a, b), left / free))
    return Contention(sys.getswitchinterval(), wake_up, tuple(rows))


def _per_second(counted: list[int], during: Callable[[], Any]) -> float:
    """How far the busy thread counts in a second while `during` runs."""
    before, since = counted[0], time.perf_counter()
    during()
    return (counted[0] - before) / (time.perf_counter() - since)


def _row(
    call: _Call,
    size: int,
    alone: list[float],
    beside: list[float],
    takes: float | None,
    busy_kept: float,
) -> ContentionRow:
    limit = sys.getswitchinterval() / 2
    return ContentionRow(
        call.name,
        size,
        len(beside),
        quantile(alone, 0.5),
        quantile(beside, 0.5),
        quantile(beside, 0.99),
        sum(took > limit for took in beside) / len(beside),
        takes,
        busy_kept,
    )


def _times(
    call: _Call, a: torch.Tensor, b: torch.Tensor, calls: int, seconds: float, kept: list[Any]
) -> list[float]:
    """Seconds of each call. Results go to `kept`, unless the call is one whose time includes freeing them."""
    fn, clock = call.fn, time.perf_counter
    times: list[float] = []
    room = max(1, KEPT_BYTES // a.nbytes)
    end = clock() + seconds
    while len(times) < calls and (clock() < end or not times):
        if len(kept) == room:
            kept.clear()
        if call.keep:
            begin = clock()
            result = fn(a, b)
            times.append(clock() - begin)
            kept.append(result)
            del result
        else:
            begin = clock()
            fn(a, b)
            times.append(clock() - begin)
    return times


def _takes(call: _Call, a: torch.Tensor, b: torch.Tensor, calls: int = 20) -> float | None:
    """How often one call takes the GIL, counted by the trace; None where that cannot see it."""
    kept: list[Any] = []  # freed after the trace: each free is a release
    seen = audit(_times, call, a, b, calls, 1e9, kept)
    return None if seen.verdict in ("no GIL", "unknown") else seen.releases / calls
