"""What a batcher waits for, and whom it wakes: the delay, threads, event loops, its workers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time

import pytest
import torch

import torchgil
from tests.conftest import in_threads
from tests.serving.conftest import Recorder, wait_until
from torchgil.serving._own_work import Bell


class Waits(Bell):
    """Where a worker waits for more requests, with how often it began to."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def wait(self, seconds=None):
        self.count += 1
        return super().wait(seconds)


def watch(batcher):
    batcher._dispatcher._due = waits = Waits()
    return waits


def test_a_lone_request_does_not_wait_and_a_full_batch_does_not_either():
    # With an hour's delay, only fullness can start a batch; with none, a lone request is a batch.
    with torchgil.Batcher(lambda x: x, max_delay=3600, max_batch_size=4) as batcher:
        futures = [batcher.submit(torch.ones(1)) for _ in range(4)]
        assert [future.result(60).item() for future in futures] == [1] * 4
        assert batcher.submit(torch.ones(4)).result(60).shape == (4,)
    with torchgil.Batcher(lambda x: x, max_delay=3600, max_queue=2) as batcher:
        futures = [batcher.submit(torch.ones(1)) for _ in range(2)]  # a full queue has nothing to wait for
        assert [future.result(60).item() for future in futures] == [1] * 2
    with torchgil.Batcher(lambda x: x, max_delay=0) as batcher:
        assert batcher.submit(torch.ones(1)).result(60) == 1


def test_the_delay_counts_from_the_oldest_request():
    stamps = []

    def fn(batch):
        stamps.append(time.monotonic())
        return batch

    delay = 0.3
    with torchgil.Batcher(fn, max_delay=delay) as batcher:
        start = time.monotonic()
        futures = []
        while not futures or not futures[0].done():
            futures.append(batcher.submit(torch.ones(1)))
            time.sleep(0.05)  # each is younger than the delay
        first = len([future for future in futures if future.result(60) is not None])
        assert stamps[0] - start >= delay
        assert sum(batcher.stats().batch_rows) >= 2
        assert first >= 2


def test_threads_and_several_loops_share_one_queue():
    with torchgil.Batcher(lambda x: x + 1, max_delay=0.001) as batcher:

        def client(i):
            async def ask():
                return await asyncio.gather(*[batcher(torch.tensor([float(i)])) for _ in range(50)])

            if i % 2:
                return [batcher.submit(torch.tensor([float(i)])).result(60).item() for _ in range(50)]
            return [value.item() for value in asyncio.run(ask())]

        for i, values in enumerate(in_threads(client, 6)):
            assert values == [i + 1] * 50
        assert batcher.stats().done == 300


def test_each_loop_is_woken_once_per_batch(held):
    batcher, fn, _ = held
    wakes = []

    async def main():
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(batcher(torch.ones(1, 3))) for _ in range(4)]
        await asyncio.sleep(0)
        original = loop.call_soon_threadsafe

        def counted(*args, **kwargs):
            wakes.append(args[0])
            return original(*args, **kwargs)

        loop.call_soon_threadsafe = counted
        fn.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert len(wakes) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_batch_wakes_each_of_its_loops_once(held, fails):
    batcher, fn, _ = held
    if fails:
        fn.fn = lambda x: x / 0 if len(x) == 1 else [][0]  # as a whole, and each half again
    wakes = []
    queued = threading.Barrier(2, timeout=60)

    async def main():
        loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(batcher(torch.ones(1, 3))) for _ in range(2)]
        await asyncio.sleep(0)
        original = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **kwargs: (wakes.append(loop), original(*args, **kwargs))[1]
        if queued.wait() == 0:
            fn.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    batcher._dispatcher._retry_halves = not fails
    answers = in_threads(lambda _: asyncio.run(main()), 2)
    assert len(wakes) == len(set(map(id, wakes))) == 2
    assert all(isinstance(answer, IndexError) == fails for pair in answers for answer in pair)


def test_a_worker_that_waits_does_not_poll():
    with torchgil.Batcher(lambda x: x, max_delay=3600, max_batch_size=2) as batcher:
        waits = watch(batcher)
        batcher.submit(torch.ones(2)).result(60)
        batcher.submit(torch.ones(1))
        wait_until(lambda: waits.count)
        with torchgil.trace() as trace:
            time.sleep(0.1)
        report = trace.report()
    workers = [thread for thread in report.threads if thread.name.startswith("torchgil-batcher")]
    assert sum(thread.releases for thread in workers) <= 3  # each millisecond would be a hundred
    assert waits.count == 1


def test_a_closed_loop_does_not_harm_the_others(held):
    batcher, fn, _ = held
    loop = asyncio.new_event_loop()
    task = loop.create_task(batcher(torch.ones(1, 3)))
    loop.run_until_complete(asyncio.sleep(0))
    other = batcher.submit(torch.ones(1, 3))
    loop.close()
    fn.gate.set()
    assert other.result(60).shape == (1, 3)
    wait_until(lambda: batcher.stats().running == 0)
    assert batcher.submit(torch.ones(1, 3)).result(60).shape == (1, 3)
    task._log_destroy_pending = False  # asyncio would rightly tell that this test closed its loop too early


def test_concurrency_runs_so_many_batches_at_once_and_no_more():
    lock, both = threading.Lock(), threading.Barrier(2, timeout=60)
    inside, most = 0, []

    def fn(batch):
        nonlocal inside
        with lock:
            inside += 1
            most.append(inside)
        both.wait()  # passes only if another batch is inside too
        time.sleep(0.001)  # a third would come in
        with lock:
            inside -= 1
        return batch

    with concurrent.futures.ThreadPoolExecutor(6) as pool:  # room for more
        with torchgil.Batcher(fn, max_delay=0, max_batch_size=1, concurrency=2, executor=pool) as batcher:
            assert len(list(batcher.map([torch.ones(1)] * 20))) == 20
    assert max(most) == 2


def test_the_callers_executor_is_used_and_left_running():
    with torchgil.ThreadPool(1, thread_name_prefix="mine") as pool:
        names = []
        fn = lambda x: (names.append(threading.current_thread().name), x)[1]  # noqa: E731
        with torchgil.Batcher(fn, max_delay=0, executor=pool) as batcher:
            batcher.submit(torch.ones(1)).result(60)
            assert pool.submit(int, "3").result(60) == 3  # a turn ends with the queue
        assert pool.submit(int, "3").result(60) == 3
    assert names[0].startswith("mine")


def test_map_yields_in_order_and_cancels_what_is_left():
    fn = Recorder(lambda x: x)
    with torchgil.Batcher(fn, max_delay=0) as batcher:
        assert [x.item() for x in batcher.map(torch.arange(50).split(1))] == list(range(50))
        fn.gate.clear()
        results = batcher.map([torch.ones(1)] * 100)
        wait_until(lambda: batcher.stats().running)
        fn.fn = lambda x: (fn.gate.clear(), x)[1]  # the next batch is held
        fn.gate.set()
        next(results)
        results.close()
        fn.fn = lambda x: x
        fn.gate.set()
        wait_until(lambda: not batcher.stats().running)
        stats = batcher.stats()
        assert stats.done + stats.cancelled == 150
        assert stats.cancelled >= 100 - 2 * 32
