"""The pool: an executor like the standard one, with intra-op threads set, and its state told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import threading
import time
import warnings
import weakref

import pytest
import torch

import torchgil
from torchgil._statistics import quantile

CORES = torchgil.usable_cores()


def default_of_a_new_thread() -> int:
    with concurrent.futures.ThreadPoolExecutor(1) as fresh:
        return fresh.submit(torch.get_num_threads).result()


def in_every_worker(pool: torchgil.ThreadPool, workers: int, fn):
    together = threading.Barrier(workers, timeout=60)

    def call():
        together.wait()
        return fn()

    return [future.result(60) for future in [pool.submit(call) for _ in range(workers)]]


def test_it_is_a_standard_executor():
    with torchgil.ThreadPool(1) as pool:
        assert isinstance(pool, concurrent.futures.ThreadPoolExecutor)
        assert pool.submit(pow, 2, exp=5).result() == 32
        assert list(pool.map(pow, [2, 3], [3, 2])) == [8, 9]
        done, _ = concurrent.futures.wait([pool.submit(int)])
        assert len(done) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
    assert pool.stats().queued == 0


def test_the_defaults_share_the_usable_cores_among_the_workers():
    with torchgil.ThreadPool() as pool:
        assert (pool.stats().workers, pool.stats().intra_op_threads) == (CORES, 1)
    with torchgil.ThreadPool(1) as pool:
        assert pool.stats().intra_op_threads == CORES


@pytest.mark.parametrize("intra_op", [1, 2, 3])
def test_every_worker_has_its_intra_op_threads_and_the_default_stays(intra_op):
    before, default = torch.get_num_threads(), default_of_a_new_thread()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pool = torchgil.ThreadPool(3, intra_op_threads=intra_op)
    with pool:
        assert in_every_worker(pool, 3, torch.get_num_threads) == [intra_op] * 3
        assert torch.get_num_threads() == before
        assert default_of_a_new_thread() == default
        # What others set later does not reach the workers, parallel regions included.
        with torchgil.intra_op_threads(before + 1):
            in_every_worker(pool, 3, lambda: torch.ones(400, 400) @ torch.ones(400, 400))
            assert in_every_worker(pool, 3, torch.get_num_threads) == [intra_op] * 3


def test_many_pools_started_at_once_leave_the_default_as_it_was():
    default = default_of_a_new_thread()

    def use_a_pool(i: int) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            pool = torchgil.ThreadPool(2, intra_op_threads=1 + i % 3)
        with pool:
            return in_every_worker(pool, 2, torch.get_num_threads) == [1 + i % 3] * 2

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            assert all(clients.map(use_a_pool, range(24)))
    assert default_of_a_new_thread() == default


def test_oversubscription_is_told_once_with_the_numbers():
    workers, intra_op = CORES + 1, 2
    message = (
        rf"{workers} workers x {intra_op} intra-op threads = {workers * intra_op} threads on {CORES} usable"
    )

    def use_a_pool():
        with torchgil.ThreadPool(workers, intra_op_threads=intra_op) as pool:
            in_every_worker(pool, workers, int)

    with pytest.warns(RuntimeWarning, match=message) as caught:
        use_a_pool()
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "arguments", [{"workers": 0}, {"workers": -1}, {"workers": 1, "intra_op_threads": 0}]
)
def test_numbers_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        torchgil.ThreadPool(**arguments)
    with pytest.raises(TypeError):
        torchgil.ThreadPool(1.5)


def test_workers_can_have_priority_for_the_gil():
    from torchgil._gil_half import C

    with torchgil.ThreadPool(1, gil_priority=True, inference_mode=True) as pool:
        assert pool.submit(C.has_priority).result()
        assert pool.submit(torch.is_inference_mode_enabled).result()
    with torchgil.ThreadPool(1) as pool:
        assert not pool.submit(C.has_priority).result()
    assert not C.has_priority()


def test_workers_can_stand_under_inference_mode():
    with torchgil.ThreadPool(1, inference_mode=True) as pool:
        assert pool.submit(torch.is_inference_mode_enabled).result()
        assert pool.submit(lambda: torch.ones(1).is_inference()).result()
    with torchgil.ThreadPool(1) as pool:
        assert not pool.submit(torch.is_inference_mode_enabled).result()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads can be pinned on Linux alone")
def test_pinned_workers_keep_to_different_cores_and_others_are_free():
    before = os.sched_getaffinity(0)
    with torchgil.ThreadPool(CORES, pin=True) as pool:
        masks = in_every_worker(pool, CORES, lambda: os.sched_getaffinity(0))
    assert sorted(core for mask in masks for core in mask) == sorted(before)
    assert os.sched_getaffinity(0) == before


def test_the_initializer_runs_in_each_worker_after_the_settings():
    seen = []
    with torchgil.ThreadPool(
        CORES, initializer=lambda tag: seen.append((tag, torch.get_num_threads())), initargs=("tag",)
    ) as pool:
        in_every_worker(pool, CORES, int)
    assert seen == [("tag", 1)] * CORES


def test_a_failing_initializer_breaks_the_pool_and_is_counted(caplog):
    def fail():
        raise OSError("no licence")

    with torchgil.ThreadPool(1, initializer=fail) as pool:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            pool.submit(int).result(60)
        assert (pool.stats().failed, pool.stats().queued) == (1, 0)
    assert "no licence" in caplog.text


def test_workers_are_no_daemons_and_end_with_the_pool():
    with torchgil.ThreadPool(1) as pool:
        worker = pool.submit(threading.current_thread).result()
        assert not worker.daemon
        assert worker.name.startswith("torchgil-worker")
    assert not worker.is_alive()


def test_a_dropped_pool_is_collected_and_its_workers_end():
    pool = torchgil.ThreadPool(1)
    worker = pool.submit(threading.current_thread).result()
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    worker.join(60)
    assert not worker.is_alive()


def test_stats_account_for_every_call():
    entered, release = threading.Event(), threading.Event()

    def hold():
        entered.set()
        assert release.wait(60)

    def fail():
        raise KeyError("x")

    with torchgil.ThreadPool(1) as pool:
        held = pool.submit(hold)
        assert entered.wait(60)
        failing, queued, cancelled = pool.submit(fail), pool.submit(int), pool.submit(int)
        assert cancelled.cancel()
        stats = pool.stats()
        assert (stats.running, stats.queued, stats.cancelled, stats.done) == (1, 2, 1, 0)
        assert stats.busy_s > 0
        release.set()
        held.result(60), queued.result(60)
        assert isinstance(failing.exception(60), KeyError)
        stats = pool.stats()
        assert (stats.running, stats.queued, stats.cancelled, stats.done, stats.failed) == (0, 0, 1, 2, 1)
        assert 0 <= stats.queue_wait_p50_s <= stats.queue_wait_p99_s
        busy_s = stats.busy_s
        assert pool.stats().busy_s == pytest.approx(busy_s)  # nothing runs, nothing grows
        assert stats.gil_wait_s is None


def test_a_finished_future_keeps_neither_the_call_nor_its_arguments():
    class Argument:
        pass

    with torchgil.ThreadPool(1) as pool:
        argument = Argument()
        gone = weakref.ref(argument)
        future = pool.submit(lambda a: None, argument)
        future.result()
        del argument
        pool.submit(int).result()  # the worker has let go of the call before
        assert gone() is None


def test_stats_tell_how_long_workers_waited_for_the_gil():
    release = threading.Event()

    def busy():
        while not release.is_set():
            sum(range(100))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pool = torchgil.ThreadPool(2, intra_op_threads=1)
    with pool:
        for _ in range(2):
            pool.submit(busy)
        contended = pool.stats(gil=True, window=0.5)
        release.set()
    with torchgil.ThreadPool(1) as idle:
        idle.submit(int).result()
        quiet = idle.stats(gil=True, window=0.2)
    assert contended.gil_window_s >= 0.5
    assert 0 < contended.gil_wait_s <= 2 * contended.gil_window_s * 1.1
    assert quiet.gil_wait_s < contended.gil_wait_s / 2


def test_run_is_awaited_with_the_callers_context():
    tag = contextvars.ContextVar("tag")

    async def main(pool):
        tag.set("mine")
        assert await pool.run(tag.get) == "mine"
        assert await pool.run(int, "ff", base=16) == 255
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 1, 0)
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, int, "7") == 7

    with torchgil.ThreadPool(1) as pool:
        asyncio.run(main(pool))


def test_cancelling_an_awaited_call_cancels_it_while_it_is_queued():
    calls = []

    async def main(pool):
        entered, release = threading.Event(), threading.Event()
        running = asyncio.create_task(
            pool.run(lambda: (entered.set(), release.wait(60), calls.append("running")))
        )
        while not entered.is_set():
            await asyncio.sleep(0.001)
        queued = asyncio.create_task(pool.run(calls.append, "queued"))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert pool.stats().cancelled == 1
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        release.set()  # a call that runs, runs on

    with torchgil.ThreadPool(1) as pool:
        asyncio.run(main(pool))
    assert calls == ["running"]


def test_an_exception_in_the_block_does_not_drop_queued_calls():
    calls = []

    def fail_in_the_block():
        with torchgil.ThreadPool(1) as pool:
            for i in range(20):
                pool.submit(calls.append, i)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail_in_the_block()
    assert calls == list(range(20))


def test_quantile_is_an_observed_value():
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([3], 0.5) == 3


def test_a_call_that_raises_stop_iteration_says_so_to_who_awaits_it():
    async def main(pool):
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await asyncio.wait_for(pool.run(next, iter([])), 60)

    with torchgil.ThreadPool(1) as pool:
        asyncio.run(main(pool))


@pytest.mark.parametrize(("cores", "workers", "share"), [(8, 3, 2), (8, 8, 1), (2, 3, 1), (96, 5, 19)])
def test_the_cores_are_shared_out_without_a_remainder(monkeypatch, cores, workers, share):
    monkeypatch.setattr("torchgil.serving._pool.usable_cores", lambda: cores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torchgil.ThreadPool(workers) as pool:
            stats = pool.stats()
    assert (stats.workers, stats.intra_op_threads) == (workers, share)


def test_a_number_far_over_any_machine_is_refused():
    with pytest.raises(ValueError, match="intra_op_threads must be at least 1 and at most 4096"):
        torchgil.ThreadPool(1, intra_op_threads=2**33)


def test_max_workers_is_the_executors_name_for_workers() -> None:
    with torchgil.ThreadPool(max_workers=2, intra_op_threads=1) as pool:
        assert pool.stats().workers == 2
    with pytest.raises(TypeError, match="workers and max_workers are one and the same"):
        torchgil.ThreadPool(2, max_workers=2)
    with pytest.raises(ValueError, match="workers"):
        torchgil.ThreadPool(max_workers=0)


def test_async_with_waits_for_the_calls_and_lets_the_loop_run() -> None:
    done: list[str] = []

    async def main() -> None:
        async def ticks() -> None:
            while "ended" not in done:
                await asyncio.sleep(0.01)
                done.append("tick")

        ticking = asyncio.create_task(ticks())
        async with torchgil.ThreadPool(1) as pool:
            futures = [pool.submit(time.sleep, 0.1) for _ in range(3)]
        assert all(future.done() for future in futures)
        done.append("ended")
        with pytest.raises(RuntimeError, match="shutdown"):
            pool.submit(time.sleep, 0)
        await ticking

    asyncio.run(main())
    assert done.count("tick") > 5
