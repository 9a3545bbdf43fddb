"""Does batching single-row requests in Python pay, and what does a lone request lose?

The model is an MLP of three 64-wide layers, so small that the batcher is most of the work: the hardest case.
The rows "256 wide" have a larger one, of which batches by hand give some eight times as much. Every row of
the table answers the same single-row requests on one intra-op thread:

  singles          a loop that calls the model once per request: 1x
  by hand          a loop that concatenates 32 rows, calls, splits: the limit, nothing is queued
  torchgil ...     the batcher with batches of 32: from two threads with 128 requests in flight each; from
                   one thread through map(); from 256 tasks of one event loop that each await one request at a
                   time, also with max_delay=0, with copy=False (results are views), and from 4,000 tasks,
                   more than the queue holds; from 32 threads that each wait for one at a time: a thread
                   switch per request, which batching cannot mend
  asyncio alone    the same 256 and 4,000 tasks await futures that the loop resolves at its next turn: no
                   batcher, no model, no other thread. What more tasks cost by themselves
  torchgil one thread   one thread submits 4,000, four times what the queue holds, and then collects
                   them; also with a worker that has priority for the GIL, and without `gc.freeze()`
  batched, async-batcher   the peers, with the same batch size: from the same 256 tasks; from the same two
                   threads, where batched gets a list of 128 requests at once and async-batcher, which has
                   no call for threads, 128 coroutines on a loop in a thread; and batched from 32 threads that
                   wait. A row that a peer has no call for is not there

Timed: from the first request to the last result, after a warm-up of the same kind and, but for the rows that
say so, `gc.freeze()`: with torch's own objects a full garbage collection takes 80 ms, and some ten thousand
requests bring one about.
Each process times the loop of single calls as well, just before and just after, and the ratio is to that one:
from one process to the next its rate differs by two on a shared machine. What batches differs less; two such
rows are compared round by round. The lone request: submit() to result() in turn with direct calls; and so,
in the same process, of a bare ThreadPoolExecutor, the least that a batcher on an executor adds; max_delay=0.
The two take turns by the hundred: one by one the system often wakes the bare executor's worker on the
caller's own core, for the batcher's has just had the other, and a request takes half as long as otherwise.

Unfair: the loops have no queue and no other thread. A larger model makes every batcher look better.

The peers come with the extra torchgil[bench].
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness

BATCH = 32
ROWS = [
    "singles",
    "by hand",
    "torchgil threads",
    "torchgil map",
    "torchgil one thread",
    "torchgil one thread, not frozen",
    "torchgil one thread, priority",
    "torchgil asyncio",
    "torchgil asyncio, max_delay=0",
    "torchgil asyncio, copy=False",
    "torchgil asyncio, 4000 tasks",
    "asyncio alone",
    "asyncio alone, 4000 tasks",
    "torchgil 32 waiting threads",
    "by hand, 256 wide",
    "torchgil threads, 256 wide",
    "torchgil asyncio, 256 wide",
]
WIDE = ", 256 wide"
QUICK = ["singles", "by hand", "torchgil threads", "torchgil map", "torchgil asyncio"]
PEERS = {"batched": "batched", "async-batcher": "async_batcher"}
PEER_ROWS = [
    "batched asyncio",
    "batched threads",
    "batched 32 waiting threads",
    "async-batcher asyncio",
    "async-batcher threads",
]


def child(configuration: dict[str, Any]) -> Any:
    """One row of the table, in a fresh process: rows per second, its own and those of single calls; or the
    lone request's latencies."""
    import torch

    name, count = configuration["row"], configuration["requests"]
    width = 256 if name.endswith(WIDE) else 64
    torch.manual_seed(0)
    layers = [torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(width, width)).eval()
    requests = list(torch.randn(1024, width).split(1))

    @torch.inference_mode()
    def fn(batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(batch)
        return result

    def fn_of_list(items: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(fn(torch.cat(items)).split(1))

    for request in requests:
        fn(request)
    if name == "lone":
        return lone(fn, requests, count)
    serve = SERVE[name.removesuffix(WIDE)]
    warm, timed = requests * 8, (requests * (count // len(requests) + 1))[:count]
    before = singles(fn, requests, requests * 4)
    rate = serve(fn if name in ROWS else fn_of_list, warm, timed)
    after = singles(fn, requests, requests * 4)
    return {"rows_per_s": rate, "singles_per_s": 2 / (1 / before + 1 / after)}


def settle() -> None:
    """No full garbage collection falls into what is timed."""
    gc.collect()
    gc.freeze()


def timed_run(
    run: Callable[[list[Any]], Any], warm: list[Any], timed: list[Any], freeze: bool = True
) -> float:
    run(warm)
    settle()
    if not freeze:
        gc.unfreeze()
    start = time.perf_counter()
    run(timed)
    return len(timed) / (time.perf_counter() - start)


def singles(fn: Any, warm: list[Any], timed: list[Any]) -> float:
    return timed_run(lambda requests: [fn(request) for request in requests], warm, timed)


def by_hand(fn: Any, warm: list[Any], timed: list[Any]) -> float:
    import torch

    def run(requests: list[Any]) -> None:
        for i in range(0, len(requests), BATCH):
            fn(torch.cat(requests[i : i + BATCH])).split(1)

    return timed_run(run, warm, timed)


def from_clients(
    answer: Callable[[list[Any]], Any], threads: int, window: int, *requests: list[Any]
) -> float:
    """Threads that each ask for `window` requests at a time and wait for their results."""

    def client(requests: list[Any]) -> None:
        for i in range(0, len(requests), window):
            answer(requests[i : i + window])

    def run(requests: list[Any]) -> None:
        clients = [threading.Thread(target=client, args=(requests[i::threads],)) for i in range(threads)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()

    return timed_run(run, *requests)


def from_threads(threads: int, window: int) -> Callable[..., float]:
    def serve(fn: Any, *requests: list[Any]) -> float:
        import torchgil

        with torchgil.Batcher(fn, max_batch_size=BATCH, max_delay=0.002) as batcher:

            def answer(some: list[Any]) -> list[Any]:
                return [future.result() for future in [batcher.submit(request) for request in some]]

            return from_clients(answer, threads, window, *requests)

    return serve


def through_map(fn: Any, warm: list[Any], timed: list[Any]) -> float:
    import torchgil

    with torchgil.Batcher(fn, max_batch_size=BATCH, max_delay=0.002) as batcher:

        def run(requests: list[Any]) -> None:
            for i in range(0, len(requests), 1024):
                list(batcher.map(requests[i : i + 1024]))

        return timed_run(run, warm, timed)


def from_one_thread(priority: bool = False, freeze: bool = True) -> Callable[..., float]:
    def serve(fn: Any, *requests: list[Any]) -> float:
        import torchgil

        worker = torchgil.ThreadPool(1, intra_op_threads=1, gil_priority=True) if priority else None
        with torchgil.Batcher(fn, max_batch_size=BATCH, max_delay=0.002, executor=worker) as batcher:

            def run(requests: list[Any]) -> None:
                for i in range(0, len(requests), 4000):
                    for future in [batcher.submit(request) for request in requests[i : i + 4000]]:
                        future.result()

            return timed_run(run, *requests, freeze=freeze)

    return serve


async def from_tasks(
    call: Callable[[Any], Any], warm: list[Any], timed: list[Any], tasks: int = 256
) -> float:
    async def client(requests: list[Any], start: asyncio.Event) -> None:
        await start.wait()
        for request in requests:
            await call(request)

    async def run(requests: list[Any]) -> float:
        start = asyncio.Event()
        clients = [asyncio.create_task(client(requests[i::tasks], start)) for i in range(tasks)]
        await asyncio.sleep(0)  # they wait
        settle()
        began = time.perf_counter()
        start.set()
        await asyncio.gather(*clients)
        return len(requests) / (time.perf_counter() - began)

    await run(warm)
    return await run(timed)


def from_a_loop(tasks: int = 256, **options: Any) -> Callable[..., float]:
    def serve(fn: Any, warm: list[Any], timed: list[Any]) -> float:
        import torchgil

        async def main() -> float:
            async with torchgil.Batcher(fn, max_batch_size=BATCH, **options) as batcher:
                return await from_tasks(batcher, warm, timed, tasks)

        return asyncio.run(main())

    return serve


def asyncio_alone(tasks: int = 256) -> Callable[..., float]:
    def serve(fn: Any, warm: list[Any], timed: list[Any]) -> float:
        async def answer(request: Any) -> Any:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            loop.call_soon(future.set_result, request)
            return await future

        return asyncio.run(from_tasks(answer, warm, timed, tasks))

    return serve


def peer_batched(fn: Any, warm: list[Any], timed: list[Any]) -> float:
    from batched import aio

    async def main() -> float:
        return await from_tasks(aio.dynamically(fn, batch_size=BATCH, timeout_ms=2.0), warm, timed)

    return asyncio.run(main())


def peer_batched_threads(threads: int, window: int) -> Callable[..., float]:
    def serve(fn: Any, *requests: list[Any]) -> float:
        import batched

        processor = batched.dynamically(fn, batch_size=BATCH, timeout_ms=2.0)
        return from_clients(processor, threads, window, *requests)

    return serve


def async_batcher(fn: Any) -> Any:
    from async_batcher.batcher import AsyncBatcher

    class Peer(AsyncBatcher):  # type: ignore[misc, type-arg]
        def process_batch(self, batch: list[Any]) -> list[Any]:
            return list(fn(batch))

    return Peer(max_batch_size=BATCH, max_queue_time=0.002)


def peer_async_batcher(fn: Any, warm: list[Any], timed: list[Any]) -> float:
    async def main() -> float:
        peer = async_batcher(fn)
        result = await from_tasks(peer.process, warm, timed)
        await peer.stop()
        return result

    return asyncio.run(main())


def peer_async_batcher_threads(fn: Any, *requests: list[Any]) -> float:
    async def made() -> Any:
        return async_batcher(fn)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    peer = asyncio.run_coroutine_threadsafe(made(), loop).result()

    def answer(some: list[Any]) -> list[Any]:
        asked = [asyncio.run_coroutine_threadsafe(peer.process(request), loop) for request in some]
        return [future.result() for future in asked]

    result = from_clients(answer, 2, 128, *requests)
    asyncio.run_coroutine_threadsafe(peer.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    return result


def lone(fn: Any, requests: list[Any], count: int) -> dict[str, float]:
    """Microseconds of a lone request through the batcher and directly, in turn."""
    import torchgil

    through: list[float] = []
    bare: list[float] = []
    direct: list[float] = []
    awaited = []

    def since(start: float) -> float:
        return (time.perf_counter() - start) * 1e6

    async def ask(batcher: Any) -> None:
        for _ in range(count // 100):
            start = time.perf_counter()
            await batcher(requests[0])
            awaited.append(since(start))

    with torchgil.Batcher(fn, max_delay=0) as batcher, ThreadPoolExecutor(1) as executor:
        kinds: list[tuple[list[float], Callable[[], Any]]] = [
            (through, lambda: batcher.submit(requests[0]).result()),
            (bare, lambda: executor.submit(fn, requests[0]).result()),
        ]
        for _ in range(max(2, count // 10_000)):
            for latencies, call in kinds:
                for i in range(120):
                    start = time.perf_counter()
                    call()
                    between = time.perf_counter()
                    fn(requests[0])
                    if i >= 20:  # the rest warms up
                        latencies.append((between - start) * 1e6)
                        direct.append(since(between))
        asyncio.run(ask(batcher))
    quantiles = {"direct": direct, "submit": through, "await": awaited, "executor": bare}
    p50s = {f"{name}_p50_us": harness.quantile(values, 0.5) for name, values in quantiles.items()}
    return {**p50s, "submit_p99_us": harness.quantile(through, 0.99)}


SERVE: dict[str, Callable[..., float]] = {
    "singles": singles,
    "by hand": by_hand,
    "torchgil threads": from_threads(2, 128),
    "torchgil map": through_map,
    "torchgil one thread": from_one_thread(),
    "torchgil one thread, not frozen": from_one_thread(freeze=False),
    "torchgil one thread, priority": from_one_thread(priority=True),
    "torchgil asyncio": from_a_loop(),
    "torchgil asyncio, max_delay=0": from_a_loop(max_delay=0),
    "torchgil asyncio, copy=False": from_a_loop(copy=False),
    "torchgil asyncio, 4000 tasks": from_a_loop(4000),
    "asyncio alone": asyncio_alone(),
    "asyncio alone, 4000 tasks": asyncio_alone(4000),
    "torchgil 32 waiting threads": from_threads(32, 1),
    "batched asyncio": peer_batched,
    "batched threads": peer_batched_threads(2, 128),
    "batched 32 waiting threads": peer_batched_threads(32, 1),
    "async-batcher asyncio": peer_async_batcher,
    "async-batcher threads": peer_async_batcher_threads,
}


def over(results: dict[str, list[Any]], row: str, base: str) -> dict[str, float]:
    """Spread of the ratios of two rows, round by round."""
    pairs = zip(results[row], results[base], strict=True)
    return harness.spread([mine["rows_per_s"] / other["rows_per_s"] for mine, other in pairs])


def parent(options: argparse.Namespace) -> None:
    """The table, and its JSON."""
    count = 5_000 if options.quick else 24_000
    peers = harness.versions(*PEERS)
    harness.stay_where_missing(options, peers)
    present = [peer for peer, version in peers.items() if version]
    peer_rows = [row for row in PEER_ROWS if row.split()[0] in present and not options.quick]
    names = [*(row for row in ROWS if not options.quick or row in QUICK), *peer_rows, "lone"]
    configurations = {name: {"row": name, "requests": count} for name in names}
    results = harness.interleave(str(Path(__file__)), configurations, rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    print(f"{'':28} {'rows/s':>9} {'x singles':>10}   (median of {options.rounds}; each process's own ratio)")
    for name in names[:-1]:
        ratio = harness.spread([r["rows_per_s"] / r["singles_per_s"] for r in results[name]])
        rate = harness.spread([r["rows_per_s"] for r in results[name]])
        rows.append({"row": name, "rows_per_s": rate, "ratio": ratio})
        spread = f"{ratio['median']:9.2f}x   {ratio['min']:.2f} to {ratio['max']:.2f}"
        print(f"{name:28} {rate['median']:9.0f} {spread}")
    pairs = [(row.replace(row.split()[0], "torchgil"), row) for row in peer_rows]
    ways = [way for way in ("torchgil asyncio", "asyncio alone") if f"{way}, 4000 tasks" in names]
    pairs = [*((f"{way}, 4000 tasks", way) for way in ways), *pairs]
    for name, base in pairs:
        ratio = over(results, name, base)
        rows.append({"row": f"{name} over {base}", "ratio": ratio})
        print(f"{name} over {base}: {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})")
    keys = results["lone"][0].keys()
    latency = {key: harness.spread([round_[key] for round_ in results["lone"]]) for key in keys}
    rows.append({"row": "lone request", **latency})
    for way in ("submit", "await", "executor"):
        added = [round_[f"{way}_p50_us"] - round_["direct_p50_us"] for round_ in results["lone"]]
        rows[-1][f"{way}_added_p50_us"] = harness.spread(added)
        print(
            f"lone request, {way}: {statistics.median(added):.0f} us more than the direct call's "
            f"{latency['direct_p50_us']['median']:.0f} us (p50; {min(added):.0f} to {max(added):.0f})"
        )
    added = [round_["submit_p50_us"] - round_["executor_p50_us"] for round_ in results["lone"]]
    rows[-1]["submit_over_executor_p50_us"] = harness.spread(added)
    print(f"lone request, submit: {statistics.median(added):.0f} us more than the executor's")
    print(f"wrote {harness.save('batching', rows, options.json, peers=peers)}")


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
