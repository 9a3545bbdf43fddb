"""Quick batches: workers and callers take turns, and nobody waits for one that does not come."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from tests.serving.conftest import Recorder, wait_until

FULL = 2  # rows: with a delay of an hour, only full batches are served
HOUR = 3600


@pytest.fixture
def quick(monkeypatch):
    """Makes batchers for which every batch is quick, whatever the machine."""
    monkeypatch.setattr("torchgil.serving.batcher._TOGETHER_S", HOUR)
    batchers = []

    def make(fn, **options):
        options = {"max_batch_size": FULL, "max_delay": HOUR, **options}
        batchers.append(torchgil.Batcher(fn, **options))
        return batchers[-1]

    yield make
    for batcher in batchers:
        batcher.shutdown(timeout=60)


class Watch:
    """A batched function, held at first, that notes at each call whether `future` was done."""

    def __init__(self):
        self.recorder = Recorder(open_=False)
        self.future = None
        self.seen = []

    def __call__(self, batch):
        result = self.recorder(batch)
        self.seen.append(self.future.done())
        return result


def ask(batcher, batches, width=3):
    return [batcher.submit(torch.ones(1, width)) for _ in range(batches * FULL)]


def test_results_of_quick_batches_in_a_row_are_told_together(quick):
    fn = Watch()
    futures = ask(quick(fn), 4)
    fn.future = futures[0]
    fn.recorder.gate.set()
    assert [future.result(60).tolist() for future in futures] == [[[2.0] * 3]] * 8
    assert fn.seen == [False] * 4


def test_results_are_told_before_a_batch_of_another_kind_or_without_delay(quick):
    fn = Watch()
    batcher = quick(fn)
    futures = ask(batcher, 1) + ask(batcher, 1, width=5)
    fn.future = futures[0]
    fn.recorder.gate.set()
    for future in futures:
        future.result(60)
    assert fn.seen == [False, True]

    fn = Watch()
    batcher = quick(fn, max_delay=0)
    futures = ask(batcher, 1)
    fn.recorder.wait_entered()
    futures += ask(batcher, 1)
    fn.future = futures[0]
    fn.recorder.gate.set()
    for future in futures:
        future.result(60)
    assert not fn.seen[0]
    assert all(fn.seen[1:])
    assert len(fn.seen) > 1


def test_a_slow_batchs_results_are_told_at_once():
    fn = Watch()
    with torchgil.Batcher(fn, max_batch_size=FULL, max_delay=HOUR) as batcher:
        futures = ask(batcher, 2)
        fn.future = futures[0]
        fn.recorder.wait_entered()
        threading.Event().wait(0.01)  # longer than any limit
        fn.recorder.gate.set()
        for future in futures:
            future.result(60)
    assert fn.seen == [False, True]


def test_a_result_that_waits_to_be_told_is_not_lost_with_a_batch_that_hangs(quick):
    entered, gate = threading.Semaphore(0), threading.Event()
    calls = []

    def hangs_at_the_second(batch):
        calls.append(len(batch))
        entered.release()
        if len(calls) == 2:
            assert gate.wait(60)
        return batch

    start = Recorder(open_=False)
    pool = torchgil.ThreadPool(1, intra_op_threads=1)
    pool.submit(start, 0)  # both batches are there when the worker is
    batcher = quick(hangs_at_the_second, executor=pool)
    futures = ask(batcher, 2)
    timed = batcher.submit(torch.ones(1, 4), timeout=0.01)
    start.gate.set()
    assert entered.acquire(timeout=60)
    assert entered.acquire(timeout=60)
    assert not any(future.done() for future in futures)
    assert batcher.stats().running == 4
    with pytest.raises(TimeoutError):
        timed.result(60)
    batcher.shutdown(timeout=0.01)
    assert [future.result(0).tolist() for future in futures[:FULL]] == [[[1.0] * 3]] * FULL
    for future in futures[FULL:]:
        with pytest.raises(torchgil.BatcherClosed):
            future.result(0)
    gate.set()
    pool.shutdown()
    stats = batcher.stats()
    assert (stats.done, stats.dropped, stats.timed_out) == (FULL, FULL, 1)
    assert (stats.running, stats.queued) == (0, 0)


def test_a_request_whose_result_waits_to_be_told_has_it_when_its_time_is_up(quick):
    gate = threading.Event()
    calls = []

    def hangs_at_the_second(batch):
        calls.append(len(batch))
        assert len(calls) == 1 or gate.wait(60)
        return batch * 2

    start = Recorder(open_=False)
    with torchgil.ThreadPool(1, intra_op_threads=1) as pool:
        pool.submit(start, 0)  # both batches are there when the worker is
        batcher = quick(hangs_at_the_second, executor=pool)
        first = [batcher.submit(torch.ones(1, 3), timeout=0.5) for _ in range(FULL)]
        second = ask(batcher, 1)
        start.gate.set()
        assert [future.result(60).tolist() for future in first] == [[[2.0] * 3]] * FULL
        assert not any(future.done() for future in second)
        gate.set()
        for future in second:
            future.result(60)
        batcher.shutdown()
    assert batcher.stats().timed_out == 0


# An event loop's requests: a worker is woken at the loop's next turn.


async def put(batcher, requests):
    """Tasks whose requests are queued, with the loop's next turn still to come."""
    tasks = [asyncio.ensure_future(batcher(torch.ones(1, 3))) for _ in range(requests)]
    await asyncio.sleep(0)
    return tasks


def on_a_loop(use, make, pool, **options):
    """Runs `use(batcher)` on a loop, with a batcher whose first batch was quick and whose worker is gone."""
    batcher = make(lambda x: x * 2, executor=pool, **options)
    for future in ask(batcher, 1):
        future.result(60)
    wait_until(lambda: not batcher._dispatcher._drains)
    return asyncio.run(asyncio.wait_for(use(batcher), 60))


@pytest.fixture
def pool():
    with torchgil.ThreadPool(1, intra_op_threads=1) as pool:
        yield pool


def test_requests_of_a_loop_come_together_before_a_worker_is_woken(quick, pool):
    async def use(batcher):
        tasks = await put(batcher, 4 * FULL)
        assert not batcher._dispatcher._drains
        assert batcher.stats().queued == 4 * FULL
        return await asyncio.gather(*tasks)

    assert len(on_a_loop(use, quick, pool)) == 4 * FULL


def test_a_worker_is_woken_at_once_where_batches_are_slow(pool):
    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_batch_size=FULL, executor=pool) as batcher:
        futures = ask(batcher, 1)
        fn.wait_entered()
        threading.Event().wait(0.01)  # longer than any limit
        fn.gate.set()
        for future in futures:
            future.result(60)
        wait_until(lambda: not batcher._dispatcher._drains)
        fn.gate.clear()

        async def main():
            tasks = await put(batcher, 1)
            assert batcher._dispatcher._drains
            fn.gate.set()
            return await asyncio.gather(*tasks)

        assert len(asyncio.run(main())) == 1


def test_a_full_queue_wakes_a_worker_at_once(quick, pool):
    async def use(batcher):
        tasks = await put(batcher, 4)
        assert batcher._dispatcher._drains or batcher.stats().queued < 4
        return await asyncio.gather(*tasks)

    assert len(on_a_loop(use, quick, pool, max_queue=4)) == 4


def test_a_thread_does_not_wait_for_the_turn_of_a_loop(quick, pool):
    async def use(batcher):
        tasks = await put(batcher, FULL - 1)
        assert batcher.submit(torch.ones(1, 3)).result(60).tolist() == [[2.0] * 3]  # the loop stands still
        return await asyncio.gather(*tasks)

    assert len(on_a_loop(use, quick, pool)) == FULL - 1


def test_shutdown_does_not_wait_for_the_turn_of_a_loop(quick, pool):
    async def use(batcher):
        tasks = await put(batcher, 3)
        batcher.shutdown()
        assert batcher.stats().done == FULL + 3
        return await asyncio.gather(*tasks)

    assert len(on_a_loop(use, quick, pool)) == 3


def test_a_loop_that_has_no_next_turn_harms_nobody(quick, pool):
    batcher = quick(lambda x: x * 2, executor=pool)
    for future in ask(batcher, 1):
        future.result(60)
    wait_until(lambda: not batcher._dispatcher._drains)
    loop = asyncio.new_event_loop()
    task = loop.create_task(batcher(torch.ones(1, 3)))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert batcher.submit(torch.ones(1, 3)).result(60).tolist() == [[2.0] * 3]

    async def another():
        return await asyncio.gather(*[batcher(torch.ones(1, 3)) for _ in range(FULL)])

    assert len(asyncio.run(another())) == FULL
    task._log_destroy_pending = False


def test_a_loop_does_not_wait_for_the_turn_of_another(quick, pool):
    async def use(batcher):
        mine = await put(batcher, FULL - 1)

        async def other():
            return await batcher(torch.ones(1, 3))

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            theirs = thread.submit(asyncio.run, other()).result(60)  # this loop stands still
        return [theirs, *await asyncio.gather(*mine)]

    assert len(on_a_loop(use, quick, pool)) == FULL


# A worker of the batcher's own lingers; another's does not.


def test_a_worker_lingers_for_the_next_request_and_goes_at_shutdown(monkeypatch):
    monkeypatch.setattr("torchgil.serving.batcher._LINGER_S", HOUR)
    turns = []
    batcher = torchgil.Batcher(lambda x: x, max_delay=0)
    start = batcher._dispatcher._start
    monkeypatch.setattr(batcher._dispatcher, "_start", lambda drain: (turns.append(drain), start(drain)))
    for _ in range(3):
        assert batcher.submit(torch.ones(1)).result(60).item() == 1
        wait_until(lambda: batcher._dispatcher._lingering)
    assert len(turns) == 1
    batcher.shutdown()  # or this hangs
    assert not batcher._dispatcher._drains


def test_a_lingering_worker_keeps_to_the_deadline(monkeypatch):
    monkeypatch.setattr("torchgil.serving.batcher._LINGER_S", HOUR)
    with torchgil.Batcher(lambda x: x, max_delay=0.001) as batcher:
        for _ in range(3):
            assert batcher.submit(torch.ones(1)).result(60).item() == 1
            wait_until(lambda: batcher._dispatcher._lingering)


def test_a_worker_of_the_callers_executor_is_free_at_once(pool, monkeypatch):
    monkeypatch.setattr("torchgil.serving.batcher._LINGER_S", HOUR)
    with torchgil.Batcher(lambda x: x, max_delay=0, executor=pool) as batcher:
        batcher.submit(torch.ones(1)).result(60)
        assert pool.submit(int).result(60) == 0
        wait_until(lambda: not batcher._dispatcher._drains)


def test_the_interpreter_exits_while_a_worker_lingers():
    run_in_child("""
        import torch, torchgil
        batcher = torchgil.Batcher(lambda x: x, max_delay=0)
        batcher.submit(torch.ones(1)).result(60)
        while not batcher._dispatcher._lingering:
            pass
    """)
