"""How a batcher ends: shutdown, a lost executor, process exit, fork, Ctrl-C. Nobody is left waiting."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import threading
import weakref

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from tests.serving.conftest import Recorder, wait_until


@pytest.mark.parametrize("drain", [True, False])
def test_shutdown_leaves_no_caller_waiting_where_batched_leaves_two_of_three(drain):
    fn = Recorder(open_=False)
    batcher = torchgil.Batcher(fn, max_delay=0, max_batch_size=1, max_queue=2)
    running = batcher.submit(torch.ones(1))
    fn.wait_entered()
    queued = batcher.submit(torch.ones(1))

    async def ask():
        return await batcher(torch.ones(1))

    with concurrent.futures.ThreadPoolExecutor(3) as clients:
        awaited = clients.submit(asyncio.run, ask())
        wait_until(lambda: batcher.stats().queued == 2)
        blocked = clients.submit(batcher.submit, torch.ones(1))
        wait_until(lambda: batcher.stats().blocked == 1)
        closing = clients.submit(batcher.shutdown, drain)
        with pytest.raises(torchgil.BatcherClosed, match="waited for room"):
            blocked.result(60)
        if not drain:
            for future in (queued, awaited):
                with pytest.raises(torchgil.BatcherClosed, match="before it served"):
                    future.result(60)
        assert not closing.done()  # a batch runs
        fn.gate.set()
        closing.result(60)
        assert running.result(60) == 2
        if drain:
            assert queued.result(60) == awaited.result(60) == 2
    stats = batcher.stats()
    assert (stats.done, stats.dropped, stats.queued, stats.running) == (
        (3, 0, 0, 0) if drain else (1, 2, 0, 0)
    )
    with pytest.raises(torchgil.BatcherClosed, match="no more requests"):
        batcher.submit(torch.ones(1))
    with pytest.raises(torchgil.BatcherClosed):
        asyncio.run(batcher(torch.ones(1)))
    batcher.shutdown()  # again


def test_shutdown_serves_at_once_what_waits_for_its_delay():
    batcher = torchgil.Batcher(lambda x: x, max_delay=3600)
    futures = [batcher.submit(torch.ones(1)) for _ in range(3)]
    batcher.shutdown()
    assert [future.result(0).item() for future in futures] == [1, 1, 1]


def test_a_shutdown_that_runs_out_of_time_fails_what_is_left_running_or_not():
    fn = Recorder(open_=False)
    batcher = torchgil.Batcher(fn, max_delay=0, max_batch_size=1)
    futures = [batcher.submit(torch.ones(1)) for _ in range(3)]
    fn.wait_entered()
    batcher.shutdown(timeout=0.05)
    for future in futures:
        with pytest.raises(torchgil.BatcherClosed, match=r"timeout of 0\.05 s"):
            future.result(0)
    assert batcher.stats().dropped == 3
    fn.gate.set()
    batcher.shutdown()
    assert batcher.stats().done == 0


def test_a_second_shutdown_can_cut_the_first_short():
    fn = Recorder(open_=False)
    batcher = torchgil.Batcher(fn, max_delay=0, max_batch_size=1)
    futures = [batcher.submit(torch.ones(1)) for _ in range(3)]
    fn.wait_entered()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        patient = other.submit(batcher.shutdown)
        wait_until(lambda: batcher._dispatcher._closed)
        batcher.shutdown(drain=False, timeout=0)
        assert all(isinstance(future.exception(0), torchgil.BatcherClosed) for future in futures)
        fn.gate.set()
        patient.result(60)


def test_shutdown_from_a_done_callback_does_not_wait_for_itself():
    batcher = torchgil.Batcher(lambda x: x, max_delay=0, max_batch_size=1)
    closed = threading.Event()
    gate = threading.Event()
    batcher._fn = lambda x: (gate.wait(60), x)[1]
    futures = [batcher.submit(torch.ones(1)) for _ in range(3)]
    futures[0].add_done_callback(lambda _: (batcher.shutdown(), closed.set()))
    gate.set()
    assert closed.wait(60)
    assert [future.result(60).item() for future in futures] == [1, 1, 1]


def test_the_with_block_ends_with_every_request_answered():
    with torchgil.Batcher(lambda x: x, max_delay=0.5) as batcher:
        futures = [batcher.submit(torch.ones(1)) for _ in range(3)]
    assert all(future.done() for future in futures)

    async def main():
        async with torchgil.Batcher(lambda x: x, max_delay=0.5) as batcher:
            task = asyncio.create_task(batcher(torch.ones(1)))
            await asyncio.sleep(0)
        return await task

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("cancel", [True, False])
def test_an_executor_that_is_shut_down_first_leaves_nobody_waiting(cancel):
    pool = torchgil.ThreadPool(1)
    entered, release = threading.Event(), threading.Event()
    pool.submit(lambda: (entered.set(), release.wait(60)))
    assert entered.wait(60)
    batcher = torchgil.Batcher(lambda x: x, max_delay=0, executor=pool)
    waiting = batcher.submit(torch.ones(1))  # its turn is queued behind the call above
    pool.shutdown(wait=False, cancel_futures=cancel)
    release.set()
    if cancel:
        with pytest.raises(torchgil.BatcherClosed, match="takes no more work"):
            waiting.result(60)
    else:
        assert waiting.result(60) == 1
    wait_until(lambda: not batcher._dispatcher._turns)
    with pytest.raises(torchgil.BatcherClosed, match="after shutdown"):
        batcher.submit(torch.ones(1)).result(60)
    batcher.shutdown()


def test_an_executor_whose_initializer_fails_leaves_nobody_waiting():
    def fail():
        raise OSError("no licence")

    with torchgil.ThreadPool(1, initializer=fail) as pool:
        batcher = torchgil.Batcher(lambda x: x, max_delay=0, executor=pool)
        for _ in range(2):
            with pytest.raises(torchgil.BatcherClosed):
                batcher.submit(torch.ones(1)).result(60)
        batcher.shutdown()


def test_no_thread_stays_behind():
    before = set(threading.enumerate())
    with torchgil.Batcher(lambda x: x, max_delay=0, concurrency=1) as batcher:
        assert len(list(batcher.map([torch.ones(1)] * 10, timeout=60))) == 10
        assert all(not thread.daemon for thread in set(threading.enumerate()) - before)
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_dropped_batcher_is_collected_with_its_threads():
    before = set(threading.enumerate())
    batcher = torchgil.Batcher(lambda x: x, max_delay=0)
    assert batcher.submit(torch.ones(1)).result(60) == 1
    turns = batcher._dispatcher._turns
    wait_until(lambda: not turns)
    gone = weakref.ref(batcher)
    del batcher
    gc.collect()
    assert gone() is None
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_an_answered_request_keeps_its_input_no_longer():
    with torchgil.Batcher(lambda x: x * 2, max_delay=0) as batcher:
        x = torch.ones(1)
        gone = weakref.ref(x)
        future = batcher.submit(x)
        assert future.result(60) == 2
        del x
        wait_until(lambda: gone() is None)


def test_at_exit_queued_requests_are_served():
    child = run_in_child(
        """
        import time, torch, torchgil
        def fn(x):
            time.sleep(0.1)
            return x
        batcher = torchgil.Batcher(fn, max_delay=0, max_batch_size=1)
        for i in range(4):
            future = batcher.submit(torch.ones(1), timeout=30)
            future.add_done_callback(lambda f, i=i: print(i, f.result().item(), flush=True))
        print("main ends", flush=True)
        """,
        timeout=60,
    )
    assert child.stdout.splitlines() == ["main ends", *(f"{i} 1.0" for i in range(4))]
    assert child.stderr == ""


def test_at_exit_what_waits_for_its_delay_is_served():
    child = run_in_child(
        """
        import time, torch, torchgil
        def fn(x):
            print(len(x), flush=True)
            return x
        batcher = torchgil.Batcher(fn, max_delay=1, concurrency=1)
        for i in range(4):
            future = batcher.submit(torch.ones(1))
            future.add_done_callback(lambda f, i=i: print(i, f.result().item(), flush=True))
        print("main ends", flush=True)
        """,
        timeout=60,
    )
    assert child.stdout.splitlines() == ["main ends", "4", *(f"{i} 1.0" for i in range(4))]
    assert child.stderr == ""


def test_at_exit_a_done_callback_may_ask_again():
    child = run_in_child(
        """
        import threading, torch, torchgil
        gate = threading.Event()
        batcher = torchgil.Batcher(lambda x: (gate.wait(60), x)[1], max_delay=0, max_batch_size=1)
        def again(future):
            print("again", flush=True)
            batcher.submit(torch.ones(1)).add_done_callback(lambda f: print(f.result().item(), flush=True))
        batcher.submit(torch.ones(1)).add_done_callback(again)
        threading.Timer(0.3, gate.set).start()
        """,
        timeout=60,
    )
    assert child.stdout.splitlines() == ["again", "1.0"]
    assert child.stderr == ""


def test_at_exit_a_request_from_another_thread_is_refused_and_not_lost():
    child = run_in_child(
        """
        import threading, time, torch, torchgil
        batcher = torchgil.Batcher(lambda x: x, max_delay=0)
        batcher.submit(torch.ones(1)).result()
        def late():
            threading.main_thread().join()
            time.sleep(0.3)
            try:
                batcher.submit(torch.ones(1)).result(20)
            except torchgil.BatcherClosed as error:
                print("refused:", error, flush=True)
        threading.Thread(target=late).start()
        """,
        timeout=60,
    )
    assert "refused: the batcher's executor takes no more work" in child.stdout
    assert child.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_at_once_and_a_new_batcher_works_there():
    child = run_in_child(
        """
        import asyncio, os, sys, torch, torchgil
        batcher = torchgil.Batcher(lambda x: x, max_delay=0)
        batcher.submit(torch.ones(1)).result()
        batcher._dispatcher._lock.acquire()  # as if another thread of the parent stood in it
        pid = os.fork()
        if pid == 0:
            for use in (lambda: batcher.submit(torch.ones(1)), lambda: batcher.stats(),
                        lambda: asyncio.run(batcher(torch.ones(1)))):
                try:
                    use()
                except RuntimeError as error:
                    assert "make a new Batcher in the child" in str(error), error
                else:
                    raise AssertionError("the inherited batcher took a request")
            batcher.shutdown()
            with torchgil.Batcher(lambda x: x + 1, max_delay=0) as fresh:
                assert fresh.submit(torch.ones(1), timeout=30).result(30) == 2
            sys.exit(42)
        batcher._dispatcher._lock.release()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        assert batcher.submit(torch.ones(1)).result(30) == 1
        """,
        timeout=60,
    )
    assert child.stderr == ""


@pytest.mark.parametrize("where", ["waiting for a result", "waiting for room"])
def test_ctrl_c_ends_cleanly_and_soon(where):
    child = run_in_child(
        """
        import os, signal, sys, threading, time, torch, torchgil
        entered = threading.Event()
        def fn(x):
            entered.set()
            time.sleep(0.3)
            return x
        with torchgil.Batcher(fn, max_delay=0, max_batch_size=1, max_queue=100) as batcher:
            futures = [batcher.submit(torch.ones(1)) for _ in range(100)]
            entered.wait()
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            if sys.argv[1] == "waiting for room":
                while True:
                    batcher.submit(torch.ones(1))
            futures[-1].result()
        """,
        where,
        timeout=25,  # the queue alone would take 30 s
        check=False,
    )
    assert child.exit_code == -signal.SIGINT
    assert child.stderr.count("Traceback") == 1
    assert child.stderr.rstrip().endswith("KeyboardInterrupt")
