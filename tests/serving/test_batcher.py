"""What a batcher does for its callers: batches, results, errors, limits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import namedtuple

import pytest
import torch

import torchgil
from tests.conftest import in_threads

Pair = namedtuple("Pair", "a b")


class Recorder:
    """A batched function that keeps the shapes it saw and can be held in a call."""

    def __init__(self, fn=lambda x: x * 2, *, open_=True):
        self.fn = fn
        self.shapes = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        if open_:
            self.gate.set()

    def __call__(self, batch):
        self.shapes.append(list(batch.shape) if isinstance(batch, torch.Tensor) else batch)
        self.entered.release()
        assert self.gate.wait(60)
        return self.fn(batch)

    def wait_entered(self):
        assert self.entered.acquire(timeout=60)


@pytest.fixture
def held():
    """A batcher whose first batch, one request alone, is held; with its recorder and that request."""
    fn = Recorder(open_=False)
    batcher = torchgil.Batcher(fn, max_delay=0, max_batch_size=8, max_queue=4)
    first = batcher.submit(torch.zeros(1, 3))
    fn.wait_entered()
    yield batcher, fn, first
    fn.gate.set()
    batcher.shutdown()


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_each_caller_gets_its_own_rows(held):
    batcher, fn, first = held
    inputs = [torch.randn(rows, 3) for rows in (1, 2, 0, 3)]
    futures = [batcher.submit(x) for x in inputs]
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    fn.gate.set()
    assert torch.equal(first.result(60), torch.zeros(1, 3))
    for x, future in zip(inputs, futures, strict=True):
        assert torch.equal(future.result(60), x * 2)
    assert fn.shapes == [[1, 3], [6, 3]]


def test_max_batch_size_counts_rows_and_keeps_the_order(held):
    batcher, fn, _ = held
    futures = [batcher.submit(torch.full((rows, 3), float(rows))) for rows in (5, 3, 1, 8)]
    fn.gate.set()
    assert [future.result(60)[0, 0].item() for future in futures] == [10, 6, 2, 16]
    assert fn.shapes == [[1, 3], [8, 3], [1, 3], [8, 3]]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, x + 1),
        lambda x: {"a": x, "b": [x + 1]},
        lambda x: Pair(x, {"deep": (x,)}),
        lambda x: [x, None],
    ],
)
def test_requests_and_results_are_pytrees(make):
    def fn(batch):
        leaves = torch.utils._pytree.tree_map(lambda t: None if t is None else t * 2, batch)
        return {"same": leaves, "none": None}

    with torchgil.Batcher(fn, max_delay=0.05) as batcher:
        inputs = [torch.randn(rows, 2) for rows in (1, 2)]
        for x, future in zip(inputs, [batcher.submit(make(x)) for x in inputs], strict=True):
            result = future.result(60)
            assert result["none"] is None
            got, expected = result["same"], fn(make(x))["same"]
            assert type(got) is type(expected)
            for a, b in zip(*map(torch.utils._pytree.tree_leaves, (got, expected)), strict=True):
                assert (a is b is None) or torch.equal(a, b)


def test_different_dtypes_shapes_and_structures_are_grouped(held):
    batcher, fn, _ = held
    inputs = [torch.ones(1, 3), torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 4), torch.ones(2, 3)]
    futures = [batcher.submit(x) for x in inputs]
    fn.gate.set()
    for x, future in zip(inputs, futures, strict=True):
        assert future.result(60).dtype == x.dtype
        assert torch.equal(future.result(60), x * 2)
    assert fn.shapes == [[1, 3], [3, 3], [1, 3], [1, 4]]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (torch.tensor(1.0), ValueError, "leading row dimension"),
        ("text", TypeError, "found str"),
        ({}, TypeError, "at least one tensor"),
        ((torch.ones(2), torch.ones(3)), ValueError, "same number of rows, got 2 and 3"),
        (torch.ones(33, 1), ValueError, "33 rows is larger than max_batch_size=32"),
    ],
)
def test_a_request_that_cannot_be_batched_fails_alone(request_, error, message):
    with torchgil.Batcher(lambda x: x, max_delay=0.02) as batcher:
        good = batcher.submit(torch.ones(1, 2))
        with pytest.raises(error, match=message):
            batcher.submit(request_).result(60)
        with pytest.raises(error, match=message):
            asyncio.run(batcher(request_))
        assert torch.equal(good.result(60), torch.ones(1, 2))
        assert (batcher.stats().failed, batcher.stats().done) == (2, 1)


def test_collate_split_and_rows_can_be_given():
    def fn(words):
        assert isinstance(words, tuple)
        return "+".join(words)

    seen = []

    def split(result, rows):
        seen.append(rows)
        return result.split("+")

    with torchgil.Batcher(
        fn, max_delay=0.2, max_batch_size=8, collate=tuple, split=split, rows=len
    ) as batcher:
        futures = [batcher.submit(word) for word in ("abc", "de", "fgh", "i")]
        assert [future.result(60) for future in futures] == ["abc", "de", "fgh", "i"]
        with pytest.raises(ValueError, match="9 rows is larger"):
            batcher.submit("123456789").result(60)
    assert seen == [[3, 2, 3], [1]]


def test_collate_can_pad_what_would_not_go_together():
    def pad(xs):
        return torch.nn.utils.rnn.pad_sequence([x[0] for x in xs], batch_first=True)

    with torchgil.Batcher(lambda x: x.sum(1), max_delay=0.2, max_batch_size=2, collate=pad) as batcher:
        futures = [batcher.submit(torch.ones(1, length)) for length in (3, 5)]
        assert [future.result(60).item() for future in futures] == [3, 5]
    assert batcher.stats().batch_rows == {2: 1}


def test_the_function_may_write_to_its_batch():
    with torchgil.Batcher(lambda batch: batch.add_(1), max_delay=0) as batcher:
        x = torch.zeros(1, 2)
        assert torch.equal(batcher.submit(x).result(60), torch.ones(1, 2))
        assert torch.equal(x, torch.zeros(1, 2))


def test_requests_made_under_inference_mode_reach_a_function_that_is_not():
    linear = torch.nn.Linear(2, 2)
    with torch.inference_mode():
        x = torch.ones(1, 2)
    with torchgil.Batcher(linear, max_delay=0) as batcher:
        assert batcher.submit(x).result(60).requires_grad


# One bad item.


def refuse_negative(batch):
    if (batch < 0).any():
        raise ValueError("a negative number")
    return batch * 2


def test_one_bad_item_does_not_fail_its_neighbours_as_it_does_in_litserve_bentoml_ray_serve_and_torchserve(
    held,
):
    batcher, fn, _ = held
    fn.fn = refuse_negative
    values = [1.0, -1.0, 3.0, 4.0]
    futures = [batcher.submit(torch.full((1, 3), value)) for value in values]
    fn.gate.set()
    for value, future in zip(values, futures, strict=True):
        if value < 0:
            with pytest.raises(ValueError, match="a negative number"):
                future.result(60)
        else:
            assert future.result(60)[0, 0] == 2 * value
    assert fn.shapes[1:] == [[4, 3], [2, 3], [1, 3], [1, 3], [2, 3]]
    assert (batcher.stats().failed, batcher.stats().done) == (1, 4)


def test_retrying_by_halves_can_be_turned_off():
    with torchgil.Batcher(refuse_negative, max_delay=0.2, max_batch_size=2, retry_halves=False) as batcher:
        good, bad = batcher.submit(torch.ones(1, 1)), batcher.submit(-torch.ones(1, 1))
        for future in (good, bad):
            with pytest.raises(ValueError, match="negative"):
                future.result(60)


@pytest.mark.parametrize(
    ("options", "fn", "error"),
    [
        ({}, lambda x: x[:-1], "first dimension must be|batch of"),
        ({}, lambda x: x.sum(), "shape \\[\\] for a batch of"),
        ({}, lambda x: [1.0] * len(x), "found float"),
        ({}, lambda x: None, "without any"),
        ({"collate": lambda xs: 1 / 0}, lambda x: x, "division by zero"),
        ({"split": lambda result, rows: 1 / 0}, lambda x: x, "division by zero"),
        ({"split": lambda result, rows: []}, lambda x: x, "split returned 0 results for 1"),
        ({"rows": lambda x: -1}, lambda x: x, "must not be negative"),
    ],
)
def test_collate_function_split_or_rows_failing_fails_every_future_once(options, fn, error):
    with torchgil.Batcher(fn, max_delay=0.05, **options) as batcher:
        futures = [batcher.submit(torch.ones(1, 2)) for _ in range(5)]
        for future in futures:
            with pytest.raises((ValueError, TypeError, ZeroDivisionError), match=error):
                future.result(60)
        stats = batcher.stats()
    assert (stats.failed, stats.submitted) == (5, 5)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
def test_what_no_one_expects_a_function_to_raise_reaches_the_caller(raised):
    def fn(batch):
        raise raised("odd")

    with torchgil.Batcher(fn, max_delay=0) as batcher:
        assert isinstance(batcher.submit(torch.ones(1)).exception(60), raised)
        if raised is StopIteration:
            with pytest.raises(RuntimeError, match="raised StopIteration"):
                asyncio.run(batcher(torch.ones(1)))
        assert batcher.stats().failed == 1 + (raised is StopIteration)


def test_a_done_callback_that_raises_harms_nobody(held, caplog):
    batcher, fn, _ = held
    futures = [batcher.submit(torch.ones(1, 3)) for _ in range(3)]

    def leave(future):
        raise SystemExit("from a callback")

    futures[0].add_done_callback(leave)
    fn.gate.set()
    assert all(torch.equal(future.result(60), 2 * torch.ones(1, 3)) for future in futures)
    assert "from a callback" in caplog.text


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
    done, _ = concurrent.futures.wait([futures[0]], timeout=60)
    assert done
    futures.append(batcher.submit(torch.ones(1, 3), timeout=60))  # there is room again
    fn.gate.set()
    assert len([future.result(60) for future in futures[1:]]) == 4
    with pytest.raises(concurrent.futures.CancelledError):
        futures[0].result()
    assert not futures[1].cancel()
    assert fn.shapes[1] == [4, 3]


# Limits.


def test_a_full_queue_raises_where_it_should():
    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_delay=0, max_queue=2, on_full="raise") as batcher:
        batcher.submit(torch.ones(1))
        fn.wait_entered()
        futures = [batcher.submit(torch.ones(1)) for _ in range(2)]
        with pytest.raises(torchgil.QueueFull, match="2 requests"):
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
def test_a_request_times_out_on_time_in_the_queue_and_in_a_batch(per_request):
    fn = Recorder(open_=False)
    limit = {"timeout": 0.05} if per_request else {}
    with torchgil.Batcher(fn, max_delay=0, timeout=None if per_request else 0.05) as batcher:
        running = batcher.submit(torch.ones(1), **limit)
        fn.wait_entered()
        queued = batcher.submit(torch.ones(1), **limit)
        for late in (running, queued):  # the batch still runs
            with pytest.raises(TimeoutError, match="no result for the request after"):
                late.result(60)
        with pytest.raises(TimeoutError):
            asyncio.run(batcher(torch.ones(1), **limit))
        assert batcher.stats().timed_out == 3
        fn.gate.set()
        assert batcher.submit(torch.ones(1), timeout=60).result(60) == 2
    assert len(fn.shapes) == 2


def test_a_timeout_that_does_not_come_changes_nothing():
    with torchgil.Batcher(lambda x: x, max_delay=0, timeout=3600) as batcher:
        assert list(batcher.map([torch.ones(1)] * 200)) == [torch.ones(1)] * 200
        assert asyncio.run(batcher(torch.ones(1))) == 1
        clock = batcher._dispatcher._clock
        wait_until(lambda: not clock._running)  # its thread sleeps for no one


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


def test_cancelling_the_last_queued_request_ends_the_wait_for_its_deadline():
    with torchgil.Batcher(lambda x: x, max_delay=3600) as batcher:
        future = batcher.submit(torch.ones(1))
        wait_until(lambda: batcher._dispatcher._due_awaited)
        assert future.cancel()
        wait_until(lambda: not batcher._dispatcher._drains)


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
    both = threading.Barrier(2, timeout=60)
    inside, most = [], []

    def fn(batch):
        inside.append(1)
        most.append(len(inside))
        both.wait()  # passes only if another batch is inside too
        inside.pop()
        return batch

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with torchgil.Batcher(fn, max_delay=0, max_batch_size=1, concurrency=2, executor=pool) as batcher:
            assert len(list(batcher.map([torch.ones(1)] * 20))) == 20
    assert max(most) == 2


def test_the_callers_executor_is_used_and_left_running():
    with torchgil.ThreadPool(1, thread_name_prefix="mine") as pool:
        names = []
        fn = lambda x: (names.append(threading.current_thread().name), x)[1]  # noqa: E731
        with torchgil.Batcher(fn, max_delay=0, executor=pool) as batcher:
            batcher.submit(torch.ones(1)).result(60)
        assert pool.submit(int, "3").result(60) == 3
    assert names[0].startswith("mine")


def test_map_yields_in_order_and_cancels_what_is_left():
    fn = Recorder(lambda x: x)
    with torchgil.Batcher(fn, max_delay=0) as batcher:
        assert [x.item() for x in batcher.map(torch.arange(50).split(1))] == list(range(50))
        fn.gate.clear()
        results = batcher.map([torch.ones(1)] * 100)
        wait_until(lambda: batcher.stats().running)
        fn.gate.set()
        next(results)
        fn.gate.clear()
        results.close()
        fn.gate.set()
        wait_until(lambda: not batcher.stats().running)
        stats = batcher.stats()
        assert stats.done + stats.cancelled == 150


def test_stats_add_up(held):
    batcher, fn, _ = held
    futures = [batcher.submit(torch.ones(rows, 3)) for rows in (1, 2)]
    stats = batcher.stats()
    assert (stats.queued, stats.queued_rows, stats.running, stats.submitted) == (2, 3, 1, 3)
    fn.gate.set()
    [future.result(60) for future in futures]
    wait_until(lambda: not batcher.stats().running)
    stats = batcher.stats()
    assert (stats.queued, stats.done, stats.submitted, stats.batches) == (0, 3, 3, 2)
    assert stats.batch_rows == {1: 1, 3: 1}
    assert 0 <= stats.wait_p50_s <= stats.wait_p99_s
    assert stats.rows_per_s > 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_queue": 0}, ValueError),
        ({"concurrency": 0}, ValueError),
        ({"max_delay": -1}, ValueError),
        ({"max_delay": float("nan")}, ValueError),
        ({"on_full": "drop"}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        torchgil.Batcher(lambda x: x, **options)
    with pytest.raises(TypeError, match="callable"):
        torchgil.Batcher(None)
    with concurrent.futures.ProcessPoolExecutor(1) as processes, pytest.raises(TypeError, match="threads"):
        torchgil.Batcher(lambda x: x, executor=processes)
