"""Faults of executors, callbacks, finalizers and of what requests are made of: nobody waits for ever."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import queue
import threading
import weakref

import numpy
import pytest
import torch
from torch.utils import _pytree

import torchgil
from tests.conftest import run_in_child
from tests.serving.conftest import Recorder, wait_until


class FailsOnce(concurrent.futures.ThreadPoolExecutor):
    """Refuses the first turn it is given."""

    error: BaseException | None = None

    def submit(self, fn, /, *args, **kwargs):
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super().submit(fn, *args, **kwargs)


@pytest.fixture
def executor():
    with FailsOnce(1) as executor:
        yield executor


def test_an_executor_that_is_full_fails_the_request_and_serves_the_next(executor):
    executor.error = queue.Full("no room here")
    with torchgil.Batcher(lambda x: x, max_delay=0, executor=executor) as batcher:
        with pytest.raises(torchgil.BatcherClosed, match="no room here"):
            batcher.submit(torch.ones(1)).result(60)
        assert batcher.submit(torch.ones(1)).result(60).item() == 1


class Inline(concurrent.futures.Executor):
    """Runs each call in the thread that submits it."""

    def submit(self, fn, /, *args, **kwargs):
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_a_function_that_runs_in_the_submitting_thread_may_wait_for_a_pool_and_another_batcher():
    with (
        torchgil.ThreadPool(1) as pool,
        torchgil.Batcher(lambda x: 3 * x, max_delay=0) as inner,
        torchgil.Batcher(
            lambda x: pool.submit(torch.mul, inner.submit(x).result(20), 2).result(20),
            max_delay=0,
            executor=Inline(),
        ) as outer,
    ):
        # The second shows that the thread was not left out of its own work, or in it.
        assert [outer.submit(torch.ones(1)).result(20).item() for _ in range(2)] == [6, 6]


@pytest.mark.parametrize("outcome", ["set_result", "set_exception"])
def test_a_caller_who_settles_a_future_himself_harms_nobody(held, outcome):
    batcher, fn, first = held
    settled, last = batcher.submit(torch.ones(1, 3)), batcher.submit(torch.ones(1, 3))
    getattr(settled, outcome)(KeyError("mine"))
    fn.gate.set()
    assert [future.result(20).sum().item() for future in (first, last)] == [0, 6]
    stats = batcher.stats()
    assert (stats.submitted, stats.done, stats.cancelled) == (3, 2, 1)


def test_ctrl_c_as_a_turn_is_handed_over_loses_nothing(executor):
    executor.error = KeyboardInterrupt()
    with torchgil.Batcher(lambda x: x, max_delay=0, executor=executor) as batcher:
        with pytest.raises(KeyboardInterrupt):
            batcher.submit(torch.ones(1))
        assert batcher.submit(torch.ones(1)).result(60).item() == 1
    stats = batcher.stats()
    assert stats.done + stats.cancelled == stats.submitted == 2  # it is withdrawn, if no worker was quicker


def test_what_is_no_executor_is_refused():
    with pytest.raises(TypeError, match="executor must be an Executor, got object"):
        torchgil.Batcher(len, executor=object())


def test_a_split_that_raises_late_fails_its_batch_alone():
    class Lazy:
        def __init__(self, result, rows):
            self.result, self.rows = result, rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            if i >= len(self.rows):
                raise IndexError
            if i == 2:
                raise KeyError("the third")
            return self.result[i : i + 1]

    fn = Recorder(open_=False)
    with torchgil.Batcher(fn, max_delay=0, split=Lazy, retry_halves=False) as batcher:
        first = batcher.submit(torch.ones(1))
        fn.wait_entered()
        futures = [batcher.submit(torch.ones(1)) for _ in range(4)]
        fn.gate.set()
        assert first.result(60).item() == 2
        for future in futures:
            with pytest.raises(KeyError, match="the third"):
                future.result(60)


def test_a_done_callback_that_finds_the_queue_full_is_told_so(held):
    batcher, fn, first = held
    errors = []

    def again(_):
        try:
            batcher.submit(torch.zeros(1, 3))
        except torchgil.QueueFull as error:
            errors.append(str(error))

    first.add_done_callback(again)
    queued = [batcher.submit(torch.zeros(1, 3 + i)) for i in range(4)]  # a batch each
    blocked = threading.Thread(target=lambda: queued.append(batcher.submit(torch.zeros(1, 9))))
    blocked.start()
    wait_until(lambda: batcher.stats().blocked)
    fn.gate.set()
    first.result(60)
    wait_until(lambda: errors)
    blocked.join(60)
    for request in queued:
        request.result(60)
    assert "must not wait for room" in errors[0]


class Odd:
    """A pytree node whose context is an array: two of them cannot be compared as a truth."""

    def __init__(self, x, tag):
        self.x, self.tag = x, tag


class Tag:
    def __init__(self, array):
        self.array = array

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return bool(self.array == other.array)  # of several elements: ValueError


def test_structures_that_cannot_be_compared_are_batched_alone():
    _pytree.register_pytree_node(Odd, lambda odd: ([odd.x], odd.tag), lambda xs, tag: Odd(xs[0], tag))
    fn = Recorder(lambda odd: odd.x * 2, open_=False)
    tags = [Tag(numpy.zeros(3)) for _ in range(4)]
    with pytest.raises(ValueError, match="ambiguous"):
        _ = tags[0] == tags[1]
    with torchgil.Batcher(fn, max_delay=0, max_queue=2) as batcher:
        first = batcher.submit(Odd(torch.ones(1), tags[0]))
        fn.wait_entered()
        queued = [batcher.submit(Odd(torch.ones(1), tag)) for tag in tags[1:3]]
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            blocked = thread.submit(batcher.submit, Odd(torch.ones(1), tags[3]))
            wait_until(lambda: batcher.stats().blocked)
            fn.gate.set()
            for request in [first, *queued, blocked.result(60)]:
                assert request.result(60).item() == 2


def test_a_map_in_garbage_that_is_collected_amid_the_batchers_work_harms_nobody():
    run_in_child(
        """
        import gc, torch, torchgil
        class Node:
            pass
        batcher = torchgil.Batcher(lambda x: x, max_delay=0, max_batch_size=1)
        gc.freeze()
        gc.set_threshold(1, 1, 1)
        for _ in range(300):
            node = Node()
            node.results, node.itself = batcher.map([torch.ones(1)] * 4), node
            next(node.results)
            del node
            batcher.submit(torch.ones(1)).result(60)
        batcher.shutdown()
        """,
        timeout=60,
    )


def test_aclose_ends_where_the_loops_own_executor_is_the_batchers():
    async def main():
        loop = asyncio.get_running_loop()
        executor = concurrent.futures.ThreadPoolExecutor(1)
        loop.set_default_executor(executor)
        start = threading.Event()
        busy = executor.submit(start.wait, 60)
        batcher = torchgil.Batcher(lambda x: x, max_delay=0, executor=executor)
        request = batcher.submit(torch.ones(1))
        closing = asyncio.ensure_future(batcher.aclose())
        while not batcher._dispatcher._closed:
            await asyncio.sleep(0.001)
        start.set()
        await asyncio.wait_for(closing, 60)
        assert busy.result()
        return request.result(0)

    assert asyncio.run(main()).item() == 1


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, KeyboardInterrupt, StopIteration])
def test_what_ends_a_thread_or_a_task_does_not_end_an_event_loop(error):
    def raises(batch):
        raise error

    async def main():
        async with torchgil.Batcher(raises, max_delay=0) as batcher:
            with pytest.raises(RuntimeError, match=f"the batched function raised {error.__name__}"):
                await batcher(torch.ones(1))
        return "the loop lives"

    assert asyncio.run(main()) == "the loop lives"


def test_a_callback_that_raises_in_a_cancellation_does_not_keep_the_process_alive():
    run_in_child(
        """
        import torch, torchgil
        batcher = torchgil.Batcher(lambda x: x, max_delay=3600)
        request = batcher.submit(torch.ones(1), timeout=3600)
        def leaves(_):
            raise SystemExit
        request.add_done_callback(leaves)
        try:
            request.cancel()
        except SystemExit:
            print("raised")
        batcher.shutdown()
        """,
        timeout=60,
    )


def test_ctrl_c_at_the_end_of_a_block_drops_what_is_queued():
    child = run_in_child(
        """
        import os, signal, threading, time, torch, torchgil
        entered, gate = threading.Event(), threading.Event()
        def fn(x):
            entered.set()
            gate.wait(60)
            return x
        try:
            with torchgil.Batcher(fn, max_delay=0, max_batch_size=1) as batcher:
                requests = [batcher.submit(torch.ones(1)) for _ in range(5)]
                entered.wait(60)
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        except KeyboardInterrupt:
            gate.set()
            print({type(request.exception(0)).__name__ for request in requests})
        """
    )
    assert child.stdout == "{'BatcherClosed'}\n"


def test_leaving_a_block_by_sys_exit_serves_what_is_queued():
    child = run_in_child(
        """
        import sys, torch, torchgil
        requests = []
        try:
            with torchgil.Batcher(lambda x: x, max_delay=3600) as batcher, torchgil.ThreadPool(1) as pool:
                requests += [batcher.submit(torch.ones(1)), pool.submit(int), pool.submit(int)]
                sys.exit()
        except SystemExit:
            print([int(request.result(0)) for request in requests])
        """
    )
    assert child.stdout == "[1, 0, 0]\n"


def test_a_forked_child_can_cancel_and_wait_without_its_parents_locks():
    run_in_child(
        """
        import os, torch, torchgil, warnings
        warnings.simplefilter("ignore")
        batcher = torchgil.Batcher(lambda x: x, max_delay=3600)
        results = batcher.map([torch.ones(1)] * 3)
        request = batcher.submit(torch.ones(1))
        with batcher._dispatcher._lock:
            child = os.fork()
            if not child:
                assert request.cancel()
                results.close()
                with torchgil.Batcher(lambda x: x, max_delay=0) as own:
                    assert own.submit(torch.ones(1)).result(60).item() == 1
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        batcher.shutdown()
        """,
        timeout=60,
    )


def test_what_was_answered_is_not_kept():
    fn = Recorder(lambda x: [] if (x == -1).any() else x * 2)
    inputs = []

    def request(value):
        x = torch.full((1,), value)
        inputs.append(weakref.ref(x))
        return batcher.submit(x)

    with torchgil.Batcher(fn, max_delay=0, max_batch_size=4) as batcher:
        fn.gate.clear()
        first = request(1.0)
        fn.wait_entered()
        futures = [request(value) for value in (1.0, -1.0, 1.0)]
        fn.gate.set()
        assert [type(future.exception(60)) for future in [first, *futures]] == [
            type(None),
            type(None),
            TypeError,
            type(None),
        ]
        result = weakref.ref(first.result())
        wait_until(lambda: not batcher._dispatcher._turns)
        del first
        gc.collect()
        assert [x() for x in inputs] == [None] * 4
        assert result() is None


def test_submitting_with_a_timeout_after_shutdown_starts_no_thread():
    batcher = torchgil.Batcher(lambda x: x)
    batcher.shutdown()
    before = threading.active_count()
    with pytest.raises(torchgil.BatcherClosed):
        batcher.submit(torch.ones(1), timeout=60)
    assert threading.active_count() == before
