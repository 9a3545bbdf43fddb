"""What does gil_priority() give a thread beside busy ones, and what does it take from them?

One process does one kind of work in one way: from one or more threads, beside one or two threads that
count in Python. It is timed alone, then beside them, and the busy threads' own progress is counted: alone,
and meanwhile. The ways: `plain`; `priority`, each working thread in a block of gil_priority() (nogil by
its own default); `interval`, sys.setswitchinterval(1e-5), which is for every thread of the process.

The works: `reacquire` is a release of 0.2 ms, of which the time over 0.2 ms counts; `eager` and `nogil` are
forwards of the 4-layer transformer of forward_models.py, `step` a training step of it (SGD), `add` one
torch.add of 4x4, back to back: the most a thread can ask; `tiny` a thousand releases of 2 us, as a decoder of
videos makes them; `decode` one token of the small language model of decode_model.py. `pool` is an `eager`
that a thread without priority sends through a ThreadPool of one worker and waits for, `batcher` 256 rows that
it submits to a Batcher of a small MLP and collects: there the workers have priority. Intra-op threads: 1.
`off and on` is the work alone without and with priority, in turn: what it costs at rest; there, what the
process's first block takes, each later one, and what a release of a thread without priority costs more after
it, are timed as well.

What is unfair: the busy threads count in a tight loop, which gives way within nanoseconds when it is
asked; real Python code is as quick, a C call that holds the GIL is not. On two cores, four working
threads and two busy ones share processors as well as the GIL.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import sys
import threading
import time
import timeit
from collections.abc import Callable
from typing import Any

import harness
import torch
from decode_model import tokens
from forward_models import MODELS

import torchgil
from torchgil.watching import wakeup_latency

WAYS = ("plain", "priority", "interval")
WORKS = ("reacquire", "eager", "step", "nogil", "add", "tiny", "decode", "batcher")
CROWDS = [(2, 1), (4, 1), (1, 2), (2, 2), (4, 2), (2, 0), (4, 0)]  # threads running `eager`, busy threads
TIMES = 20_000
RELEASED_S = 0.0002


def make(work: str, way: str) -> Callable[[], Any]:
    """One call of the work, for one thread."""
    if work == "reacquire":
        return lambda: torchgil.released.spin(RELEASED_S)
    if work == "add":
        small = torch.randn(4, 4)
        return lambda: torch.add(small, small)
    if work == "tiny":

        def tiny() -> None:
            for _ in range(1000):
                torchgil.released.spin(2e-6)

        return tiny
    if work == "decode":
        return functools.partial(next, tokens())
    if work == "batcher":
        return through_batcher(way)
    torch.manual_seed(0)
    model = MODELS["transformer"]
    module, inputs = model.make().eval(), model.inputs(0)
    if work == "pool":
        return through_pool(way, module, inputs)
    if work == "nogil":
        forward = torchgil.nogil(module, inputs, gil_priority=way == "priority")
        return lambda: forward(*inputs)
    if work == "step":
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            module(*inputs).square().mean().backward()
            optimizer.step()

        return step

    def eager() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return eager


def through_pool(way: str, module: torch.nn.Module, inputs: Any) -> Callable[[], Any]:
    """One forward in a pool of one worker, which each thread has for itself."""
    pool = torchgil.ThreadPool(1, intra_op_threads=1, inference_mode=True, gil_priority=way == "priority")
    return lambda: pool.submit(module, *inputs).result()


def through_batcher(way: str) -> Callable[[], Any]:
    """256 rows through a batcher with one worker."""
    mlp = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)).eval()
    worker = torchgil.ThreadPool(1, intra_op_threads=1, inference_mode=True, gil_priority=way == "priority")
    batcher = torchgil.Batcher(mlp, executor=worker)
    rows = torch.randn(256, 1, 64)

    def collect() -> None:
        for future in [batcher.submit(row) for row in rows]:
            future.result()

    return collect


def priority(work: str, way: str) -> contextlib.AbstractContextManager[None]:
    """What a working thread is in."""
    elsewhere = work in ("nogil", "pool", "batcher")
    return torchgil.gil_priority() if way == "priority" and not elsewhere else contextlib.nullcontext()


class Busy:
    """Threads that count in Python while one lives."""

    def __init__(self, threads: int) -> None:
        self._stop = False
        self.counts = [0] * threads
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def _run(self, i: int) -> None:
        while not self._stop:
            self.counts[i] += 1

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()

    def per_second(self, during: Callable[[], Any]) -> tuple[Any, list[float]]:
        before, started = list(self.counts), time.perf_counter()
        result = during()
        seconds = time.perf_counter() - started
        return result, [(now - then) / seconds for now, then in zip(self.counts, before, strict=True)]


def timed(call: Callable[[], Any], seconds: float, least: int = 5) -> list[float]:
    """Seconds of each call, for so long and at least so often."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        started = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - started)
        del result
    return times


def from_threads(calls: list[Callable[[], Any]], work: str, way: str, seconds: float) -> list[list[float]]:
    """Each working thread's times; with one, this thread's."""
    times: list[list[float]] = [[] for _ in calls]

    def run(i: int) -> None:
        with priority(work, way):
            times[i] = timed(calls[i], seconds)

    if len(calls) == 1:
        run(0)
        return times
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def child(configuration: dict[str, Any]) -> dict[str, Any]:
    """The figures of one work in one way."""
    torch.set_num_threads(1)
    work, way, scale = configuration["work"], configuration["way"], configuration["scale"]
    if way == "off and on":
        return at_rest(work, scale)
    calls = [make(work, way) for _ in range(configuration["workers"])]
    for call in calls:
        timed(call, 0.2 * scale, 20)
    less = RELEASED_S if work == "reacquire" else 0.0
    alone = list(itertools.chain(*from_threads(calls, work, way, 0.7 * scale)))
    interval = 1e-5 if way == "interval" else sys.getswitchinterval()
    with torchgil.switch_interval(interval), Busy(configuration["busy"]) as busy:
        _, free = busy.per_second(lambda: time.sleep(0.5 * scale))
        beside, left = busy.per_second(lambda: from_threads(calls, work, way, 2.0 * scale))
    every = list(itertools.chain(*beside))
    done = [len(times) for times in beside]
    return {
        "alone_p50_s": harness.quantile(alone, 0.5) - less,
        "p50_s": harness.quantile(every, 0.5) - less,
        "p99_s": harness.quantile(every, 0.99) - less,
        "ratio": harness.quantile(every, 0.5) / harness.quantile(alone, 0.5),
        "calls_per_s": len(every) / (2.0 * scale),
        "mean_ratio": (sum(every) / len(every)) / (sum(alone) / len(alone)),
        "share_of_slowest": min(done) * len(done) / sum(done),
        "busy_alone_per_s": sum(free),
        "busy_per_s": sum(left),
        "wakeup_p50_s": wakeup_latency(300).p50_s,
    }


def block() -> None:
    """One, of nothing."""
    with torchgil.gil_priority():
        pass


def release() -> None:
    """One, of nothing."""
    torchgil.released.spin(0)


def each(call: Callable[[], Any]) -> float:
    """Seconds of one of many calls, the least disturbed of five runs."""
    return min(timeit.repeat(call, number=TIMES, repeat=5)) / TIMES


def at_rest(work: str, scale: float) -> dict[str, Any]:
    """The same calls alone, with priority and without, in turn."""
    call = make(work, "plain")
    timed(call, 0.3 * scale, 20)
    before = each(release)
    (first,) = timed(block, 0, 1)  # from here on everything is redirected, and stays so
    after = each(release)
    on, off = [], []
    for _ in range(max(2, int(20 * scale))):
        off += timed(call, 0.1 * scale)
        with torchgil.gil_priority():
            on += timed(call, 0.1 * scale)
    return {
        "on_over_off": harness.quantile(on, 0.5) / harness.quantile(off, 0.5),
        "first_block_s": first,
        "block_s": each(block),
        "release_added_s": after - before,
    }


def parent(options: argparse.Namespace) -> None:
    """Measures all, writes the rows, prints the table."""
    scale = 0.1 if options.quick else 1.0
    ways = WAYS[:2] if options.quick else WAYS
    works = WORKS[:2] if options.quick else WORKS
    wanted = [(work, way, 1, 1) for work in works for way in ways]
    crowds = [] if options.quick else CROWDS
    wanted += [("eager", way, workers, busy) for workers, busy in crowds for way in WAYS]
    wanted += [(work, way, 2, 1) for work in ("add", "decode", "pool") for way in WAYS if crowds]
    wanted += [(work, "off and on", 1, 0) for work in ("eager", "nogil")]
    configurations = {
        f"{work}, {way}, {workers} beside {busy}": {
            "work": work,
            "way": way,
            "workers": workers,
            "busy": busy,
            "scale": scale,
        }
        for work, way, workers, busy in wanted
    }
    if options.only:
        configurations = {
            name: what for name, what in configurations.items() if any(text in name for text in options.only)
        }
    rows = []
    for name, results in harness.interleave(__file__, configurations, rounds=options.rounds).items():
        keys = {key: value for key, value in configurations[name].items() if key != "scale"}
        rows.append({**keys, **{k: harness.spread([r[k] for r in results]) for k in results[0]}})
    show(rows)
    if options.json or not options.only:
        print(f"-> {harness.save('priority', rows, options.json)}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TEXT",
        help="only the rows whose name contains one of these, as in 'eager, priority, 2 beside 1';"
        " they are printed, and written with --json alone",
    )


def show(rows: list[dict[str, Any]]) -> None:
    """One line a row, medians."""
    print(f"{'':34}alone ms   beside ms     p99 ms   ratio   slowest's share   busy M/s: alone  beside")
    for r in rows:
        name = f"{r['work']}, {r['way']}, {r['workers']} beside {r['busy']}"
        if "ratio" not in r:
            print(
                f"{name:34}{r['on_over_off']['median']:.3f}x; a block {r['block_s']['median'] * 1e6:.2f} us, "
                f"the first {r['first_block_s']['median'] * 1e3:.1f} ms; "
                f"a release elsewhere +{r['release_added_s']['median'] * 1e9:.0f} ns"
            )
            continue
        figures = {key: value["median"] for key, value in r.items() if isinstance(value, dict)}
        print(
            f"{name:34}{figures['alone_p50_s'] * 1e3:8.3f} {figures['p50_s'] * 1e3:11.3f} "
            f"{figures['p99_s'] * 1e3:10.3f} {figures['ratio']:7.2f} {figures['share_of_slowest']:17.2f} "
            f"{figures['busy_alone_per_s'] / 1e6:17.1f} {figures['busy_per_s'] / 1e6:7.1f}"
        )


if __name__ == "__main__":
    harness.main(__doc__, child, parent, add_options)
