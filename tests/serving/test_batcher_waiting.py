"""Requests that wait: cancelled, without room, out of time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading

import pytest
import torch

import torchgil
from tests.serving.conftest import Recorder, wait_until

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


def test_a_task_whose_time_is_up_as_it_waits_for_room_is_told_though_every_worker_is_busy(held):
    """There is room for it by then, but no batch that would find it late."""
    batcher, _, _ = held
    queued = [batcher.submit(torch.zeros(1, 3)) for _ in range(4)]

    async def late():
        task = asyncio.create_task(batcher(torch.zeros(1, 3), timeout=0.2))
        while batcher.stats().blocked == 0:
            await asyncio.sleep(0)
        queued[0].cancel()
        batcher.stats()  # sweeps: there is room for one, but not half of the queue
        assert batcher.stats().blocked == 1
        with pytest.raises(TimeoutError, match="no result"):
            await asyncio.wait_for(task, 60)

    asyncio.run(late())
    assert batcher.stats().timed_out == 1


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
