"""How requests wait: cancelled, without room, out of time, for a deadline, from threads and loops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
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


# Cancelling.


def test_cancelling_one_item_leaves_the_rest_of_the_batch_alone_where_async_batcher_hangs(held):
    batcher, fn, _ = held

    async def main():
        tasks = [asyncio.create_task(batcher(torch.full((1, 3), float(i)))) for i in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()  # while it is queued
        await asyncio.sleep(0)
        fn.gate.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    results = asyncio.run(main())
    assert isinstance(results[1], asyncio.CancelledError)
    assert [results[i][0, 0].item() for i in (0, 2, 3)] == [0, 4, 6]
    assert fn.shapes[1] == [3, 3]
    assert batcher.stats().cancelled == 1


def test_a_batch_whose_requests_were_all_cancelled_lets_the_next_one_be_formed():
    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_delay=3600, max_batch_size=1) as batcher:
        running, cancelled, last = (batcher.submit(torch.ones(1, 1)) for _ in range(3))
        fn.wait_entered()
        assert cancelled.cancel()
        fn.gate.set()
        assert (running.result(60), last.result(60)) == (2, 2)


def test_cancelling_a_task_whose_batch_runs_drops_its_result_alone():
    fn = Recorder(open_=False)

    async def main(batcher):
        tasks = [asyncio.create_task(batcher(torch.full((1, 1), float(i)))) for i in range(2)]
        while not fn.shapes:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        await asyncio.sleep(0)
        fn.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with torchgil.Batcher(fn, max_delay=0.2, max_batch_size=2) as batcher:
        cancelled, served = asyncio.run(main(batcher))
        assert isinstance(cancelled, asyncio.CancelledError)
        assert served.item() == 2
        assert (batcher.stats().cancelled, batcher.stats().done) == (1, 1)


def test_a_queued_future_can_be_cancelled_and_frees_its_place_and_a_running_one_cannot(held):
    batcher, fn, first = held
    futures = [batcher.submit(torch.ones(1, 3)) for _ in range(4)]
    assert first.running()
    assert not first.cancel()
    assert futures[0].cancel()
    assert futures[0].cancelled()
    assert futures[0].cancel()  # again: still cancelled
    futures.append(batcher.submit(torch.ones(1, 3), timeout=60))  # there is room again
    done, _ = concurrent.futures.wait([futures[0]], timeout=60)
    assert done
    fn.gate.set()
    assert len([future.result(60) for future in futures[1:]]) == 4
    with pytest.raises(concurrent.futures.CancelledError):
        futures[0].result()
    assert not futures[1].cancel()
    assert fn.shapes[1] == [4, 3]


@pytest.mark.parametrize("on_full", ["raise", "block"])
def test_what_was_cancelled_in_a_full_queue_makes_way(on_full):
    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_delay=0, max_queue=2, on_full=on_full, block_timeout=60) as batcher:
        running = batcher.submit(torch.ones(1))
        fn.wait_entered()
        futures = [batcher.submit(torch.ones(1)) for _ in range(2)]
        assert futures[0].cancel()
        futures.append(batcher.submit(torch.ones(1)))  # the worker is held: room is what was cancelled
        assert batcher.stats().cancelled == 1
        fn.gate.set()
        assert [future.result(60) for future in (running, *futures[1:])] == [2, 2, 2]


# Limits.


def test_a_full_queue_raises_where_it_should():
    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_delay=0, max_queue=2, on_full="raise") as batcher:
        batcher.submit(torch.ones(1))
        fn.wait_entered()
        futures = [batcher.submit(torch.ones(1)) for _ in range(2)]
        with pytest.raises(torchgil.QueueFull, match="2 requests"):
            batcher.submit(torch.ones(1))
        with pytest.raises(queue.Full, match="2 requests"):  # the name that the standard library has
            batcher.submit(torch.ones(1))
        with pytest.raises(torchgil.QueueFull):
            asyncio.run(batcher(torch.ones(1)))
        fn.gate.set()
        assert [future.result(60).item() for future in futures] == [2, 2]
        assert batcher.stats().submitted == 3


def test_a_full_queue_blocks_until_there_is_room_first_come_first_served(held):
    batcher, fn, _ = held
    for _ in range(4):
        batcher.submit(torch.zeros(1, 3))
    order = []

    def wait_and_submit(i):
        wait_until(lambda: batcher.stats().blocked == i)
        future = batcher.submit(torch.full((1, 3), float(i)))
        order.append(i)
        return future.result(60)[0, 0].item()

    async def wait_in_a_loop():
        wait_until(lambda: batcher.stats().blocked == 3)
        return (await batcher(torch.full((1, 3), 3.0)))[0, 0].item()

    with concurrent.futures.ThreadPoolExecutor(5) as clients:
        blocked = [clients.submit(wait_and_submit, i) for i in range(3)]
        blocked.append(clients.submit(asyncio.run, wait_in_a_loop()))
        wait_until(lambda: batcher.stats().blocked == 4)
        assert order == []
        fn.gate.set()
        assert [future.result(60) for future in blocked] == [0, 2, 4, 6]


@pytest.mark.parametrize(("max_batch_size", "max_queue", "lets_in_at"), [(2, 8, 4), (6, 8, 2), (2, 1, 0)])
def test_a_full_queue_lets_nobody_in_before_half_of_it_and_a_batch_are_free(
    max_batch_size, max_queue, lets_in_at
):
    """Let in at each free place, a producer takes the GIL from each op of the worker."""
    queued = []

    def fn(batch):
        stats = batcher.stats()
        queued.append((stats.queued, stats.blocked))
        entered.set()
        assert gate.wait(60)
        return batch

    entered, gate = threading.Event(), threading.Event()
    options = {"max_batch_size": max_batch_size, "max_queue": max_queue, "max_delay": 0}
    with torchgil.Batcher(fn, **options) as batcher, concurrent.futures.ThreadPoolExecutor(1) as producer:
        batcher.submit(torch.ones(1))
        assert entered.wait(60)
        for _ in range(max_queue):
            batcher.submit(torch.ones(1))
        blocked = producer.submit(batcher.submit, torch.ones(1))
        wait_until(lambda: batcher.stats().blocked == 1)
        gate.set()
        blocked.result(60).result(60)
    before = [queue for queue, waiting in queued[1:] if waiting]
    after = [queue for queue, waiting in queued[1:] if not waiting]
    assert all(queue > lets_in_at for queue in before), queued
    assert after[0] <= lets_in_at + 1, queued  # with the one that waited


def test_who_waited_for_long_enough_takes_any_room(held):
    batcher, fn, _ = held
    queued = [batcher.submit(torch.zeros(1, 3)) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        blocked = client.submit(batcher.submit, torch.ones(1, 3))
        wait_until(lambda: batcher.stats().blocked == 1)
        queued[0].cancel()
        batcher.stats()  # sweeps
        assert batcher.stats().blocked == 1
        (request,) = batcher._dispatcher._queue.blocked
        batcher._dispatcher.give_up(request)  # as its time-out does
        assert batcher.stats().blocked == 0
        fn.gate.set()
        assert blocked.result(60).result(60).tolist() == [[2.0, 2.0, 2.0]]


def test_blocking_ends_with_queue_full_when_time_is_up(held):
    batcher, _, _ = held
    for _ in range(4):
        batcher.submit(torch.zeros(1, 3))
    with pytest.raises(torchgil.QueueFull, match="no room"):
        batcher.submit(torch.zeros(1, 3), timeout=0.02)
    with pytest.raises(torchgil.QueueFull, match="no room"):
        asyncio.run(batcher(torch.zeros(1, 3), timeout=0.02))
    assert batcher.stats().blocked == 0


def test_block_timeout_holds_for_every_request():
    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_delay=0, max_queue=1, block_timeout=0.02) as batcher:
        batcher.submit(torch.zeros(1))
        fn.wait_entered()
        queued = batcher.submit(torch.zeros(1))
        with pytest.raises(torchgil.QueueFull):
            batcher.submit(torch.zeros(1))
        with pytest.raises(torchgil.QueueFull):
            asyncio.run(batcher(torch.zeros(1)))
        fn.gate.set()
        assert queued.result(60) == 0


@pytest.mark.parametrize("per_request", [True, False])
def test_a_request_times_out_in_the_queue_and_not_in_a_batch(per_request):
    fn = Recorder(open_=False)
    limit = {"timeout": 0.02} if per_request else {}
    with torchgil.Batcher(fn, max_delay=0, timeout=None if per_request else 0.02) as batcher:
        running = batcher.submit(torch.ones(1), timeout=60)
        fn.wait_entered()
        queued = batcher.submit(torch.ones(1), **limit)
        with pytest.raises(TimeoutError, match="no result for the request after"):  # on time: the loop looks
            asyncio.run(batcher(torch.ones(1), **limit))
        assert batcher.stats().timed_out == 1
        with pytest.raises(concurrent.futures.TimeoutError):  # the thread's own patience
            queued.result(0.02)
        assert not queued.done()  # every worker is busy
        fn.gate.set()
        with pytest.raises(TimeoutError, match="no result for the request after"):
            queued.result(60)
        assert running.result(60) == 2
        assert batcher.submit(torch.ones(1), timeout=60).result(60) == 2
        assert batcher.stats().timed_out == 2
    assert len(fn.shapes) == 2


@pytest.mark.parametrize("kind", [TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError])
def test_a_late_request_is_late_by_every_name_of_it(kind):
    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_delay=0, timeout=0.02) as batcher:
        running = batcher.submit(torch.ones(1), timeout=60)
        fn.wait_entered()
        queued = batcher.submit(torch.ones(1))
        with pytest.raises(kind, match="no result for the request after"):
            asyncio.run(batcher(torch.ones(1)))
        fn.gate.set()
        with pytest.raises(kind, match="no result for the request after"):
            queued.result(60)
        assert running.result(60) == 2


def test_a_timeout_that_does_not_come_changes_nothing():
    with torchgil.Batcher(lambda x: x, max_delay=0, timeout=3600) as batcher:
        assert list(batcher.map([torch.ones(1)] * 200)) == [torch.ones(1)] * 200
        assert asyncio.run(batcher(torch.ones(1))) == 1


# Delay, threads, loops, workers.


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
