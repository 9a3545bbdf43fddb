"""One contender of a comparison, measured in a process of its own (`_child`)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torchgil._statistics import quantile
from torchgil.compare._contenders import Contender
from torchgil.compare._services import Serving, moved_bytes, start
from torchgil.compare._subject import load

__all__ = ["MARK", "NOT_LOADED", "Figures", "main", "measure"]

# The figures are on the line after this one: a factory may print what it likes before and after.
MARK = "torchgil-measured:"
# Printed where the factory is not there, or fails, since it will then fail for every contender.
NOT_LOADED = "torchgil-not-loaded"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one contender.

    Attributes:
        start_up_s: Seconds from an interpreter with torch imported to every worker having answered; with
            batching, to a batch having been.
        requests_per_s: Answers per second.
        p50_s: Median seconds from asking to the answer, with the comparison's number of requests in flight;
            one thread has one.
        p99_s: The same, 99th percentile.
        uss_mb: Memory of this and all child processes that no other process shares, in MB.
        pss_mb: The same with shared memory divided among its users; None where the system does not tell.
        pickled_bytes: Bytes pickled per request, both ways; 0 in one process.
        shared_bytes: Bytes per request that torch moves beside the pickle, through shared memory.
        gil_wait_share: Share of the workers' time that they waited for the GIL, asking for it back or
            switched out by the interpreter; None in processes.
        max_batch_size: Rows in a batch, at most; 0 without batching.
    """

    start_up_s: float
    requests_per_s: float
    p50_s: float
    p99_s: float
    uss_mb: float
    pss_mb: float | None
    pickled_bytes: int
    shared_bytes: int
    gil_wait_share: float | None
    max_batch_size: int = 0


def measure(contender: Contender, factory: str, *, in_flight: int, seconds: float) -> Figures:
    """Start `contender`, load it for `seconds` with `in_flight` requests at a time, and look."""
    begun = time.perf_counter()
    serving = start(contender, factory, in_flight)
    start_up_s = time.perf_counter() - begun
    try:
        _load(serving, in_flight, seconds / 5)  # warm up
        latencies, wall_s = _load(serving, in_flight, seconds)
        uss_mb, pss_mb = _memory_mb()
        processes = contender.kind in ("processes", "shared")
        wait_share = None if processes else _gil_wait_share(serving, in_flight, min(1.0, seconds / 3))
    finally:
        serving.close()
    pickled, shared = moved_bytes(factory) if processes else (0, 0)
    return Figures(
        start_up_s=start_up_s,
        requests_per_s=len(latencies) / wall_s,
        p50_s=quantile(latencies, 0.5),
        p99_s=quantile(latencies, 0.99),
        uss_mb=uss_mb,
        pss_mb=pss_mb,
        pickled_bytes=pickled,
        shared_bytes=shared,
        gil_wait_share=wait_share,
        max_batch_size=serving.max_batch_size,
    )


def _load(serving: Serving, in_flight: int, seconds: float) -> tuple[list[float], float]:
    """Latencies of the answers, and the seconds they took together."""
    begun = time.perf_counter()
    if serving.ask is not None:
        latencies = asyncio.run(_load_awaited(serving, in_flight, seconds))
    elif serving.submit is not None:
        latencies = _load_submitted(serving, in_flight, seconds)
    else:
        assert serving.answer is not None
        latencies = []
        while not latencies or time.perf_counter() - begun < seconds:
            asked = time.perf_counter()
            serving.answer()
            latencies.append(time.perf_counter() - asked)
    return latencies, time.perf_counter() - begun


def _load_submitted(serving: Serving, in_flight: int, seconds: float) -> list[float]:
    assert serving.submit is not None
    room = threading.Semaphore(in_flight)
    latencies: list[float] = []
    errors: list[BaseException] = []

    def answered(future: Future[Any], asked: float) -> None:
        latencies.append(time.perf_counter() - asked)
        error = future.exception()
        if error is not None:
            errors.append(error)
        room.release()

    end = time.perf_counter() + seconds
    while (time.perf_counter() < end or not latencies) and not errors:
        room.acquire()
        asked = time.perf_counter()
        serving.submit().add_done_callback(partial(answered, asked=asked))
    for _ in range(in_flight):
        room.acquire()
    if errors:
        raise errors[0]
    return latencies


async def _load_awaited(serving: Serving, in_flight: int, seconds: float) -> list[float]:
    assert serving.ask is not None
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def client(ask: Any) -> None:
        while True:
            asked = time.perf_counter()
            await ask()
            latencies.append(time.perf_counter() - asked)
            if time.perf_counter() >= end:
                return

    await asyncio.gather(*[client(serving.ask) for _ in range(in_flight)])
    return latencies


def _memory_mb() -> tuple[float, float | None]:
    import psutil

    here = psutil.Process()
    uss = pss = 0.0
    for process in [here, *here.children(recursive=True)]:
        try:
            info = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        uss += info.uss
        pss += getattr(info, "pss", float("nan"))
    return uss / 1e6, pss / 1e6 if pss == pss else None  # NaN: not on Linux


def _gil_wait_share(serving: Serving, in_flight: int, seconds: float) -> float:
    from torchgil.tracing import trace

    with trace() as t:
        _load(serving, in_flight, seconds)
    answering = "MainThread" if serving.answer is not None else "torchgil-worker"
    threads = [thread for thread in t.report().threads if thread.name.startswith(answering)]
    wall_s = sum(thread.wall_s for thread in threads)
    return sum(thread.wait_s + thread.preempted_s for thread in threads) / wall_s if wall_s else 0.0


def main(argv: list[str]) -> None:
    """Measure what the JSON in `argv[0]` says; print the figures as JSON after a mark."""
    options = json.loads(argv[0])
    contender = Contender(**options.pop("contender"))
    try:
        figures = measure(contender, options.pop("factory"), **options)
    except BaseException as error:
        if any(frame.f_code is load.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
            print(f"\n{NOT_LOADED}", flush=True)
        raise
    print(f"\n{MARK}\n{json.dumps(asdict(figures))}", flush=True)
