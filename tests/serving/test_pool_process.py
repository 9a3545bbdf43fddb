"""The pool at the edges of a process: exit, fork, Ctrl-C. Each in a child of its own, with a time limit."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import run_in_child


def test_at_exit_running_and_queued_calls_are_finished():
    child = run_in_child(
        """
        import time, torch, torchgil
        pool = torchgil.ThreadPool(1)
        for i in range(3):
            pool.submit(lambda i=i: (time.sleep(0.1), print("call", i, flush=True)))
        print("main ends", flush=True)
        """,
        timeout=60,
        whole_end=True,
    )
    assert child.stdout.splitlines() == ["main ends", "call 0", "call 1", "call 2"]
    assert child.stderr == ""


def test_at_exit_a_worker_that_starts_late_serves_all_the_same():
    child = run_in_child(
        """
        import threading, torch, torchgil, torchgil._threads, warnings
        warnings.simplefilter("ignore")  # of more threads than there are cores
        taken = threading.Event()

        def keep():  # the worker stops in its start, past main's end
            with torchgil._threads._set_num_threads_lock:
                taken.set()
                threading.Event().wait(1)

        threading.Thread(target=keep).start()
        taken.wait()
        pool = torchgil.ThreadPool(1, intra_op_threads=3)
        pool.submit(lambda: print(torch.get_num_threads(), flush=True))
        print("main ends", flush=True)
        """,
        timeout=60,
        whole_end=True,
    )
    assert child.stdout.splitlines() == ["main ends", "3"]
    assert child.stderr == ""


def test_at_exit_a_long_released_op_ends_cleanly():
    child = run_in_child(
        """
        import torchgil
        pool = torchgil.ThreadPool(1)
        pool.submit(torchgil.released.sleep, 0.5)
        """,
        timeout=60,
        whole_end=True,
    )
    assert (child.exit_code, child.stderr) == (0, "")


def test_at_exit_an_exception_in_main_keeps_its_exit_code():
    child = run_in_child(
        """
        import torchgil
        pool = torchgil.ThreadPool(1)
        pool.submit(print, "served")
        raise SystemExit(7)
        """,
        timeout=60,
        check=False,
        whole_end=True,
    )
    assert (child.exit_code, child.stdout, child.stderr) == (7, "served\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_at_once_and_a_new_pool_works_there():
    child = run_in_child(
        """
        import asyncio, os, sys, torch, torchgil
        pool = torchgil.ThreadPool()
        pool.submit(torch.ones, 2).result()
        pool._shutdown_lock.acquire()  # as if another thread of the parent stood in submit
        pid = os.fork()
        if pid == 0:
            for use in (lambda: pool.submit(int), lambda: list(pool.map(int, "1")), lambda: pool.stats(),
                        lambda: asyncio.run(pool.run(int))):
                try:
                    use()
                except RuntimeError as error:
                    assert "make a new ThreadPool in the child" in str(error), error
                else:
                    raise AssertionError("the inherited pool took work")
            pool.shutdown()
            with torchgil.ThreadPool() as fresh:
                product = fresh.submit(lambda: torch.ones(300, 300) @ torch.ones(300, 300)).result(30)
                assert product.sum() == 300.0**3
            sys.exit(42)
        pool._shutdown_lock.release()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        assert pool.submit(int, "5").result() == 5
        """,
        timeout=60,
    )
    assert child.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_threads_stand_in_submit_leaves_the_childs_threads_able_to():
    run_in_child(
        """
        import os, sys, threading, time, torchgil
        from torchgil.serving import _own_work as own_work
        parents = torchgil.ThreadPool(1)
        parents._shutdown_lock.acquire()
        threads = [threading.Thread(target=parents.submit, args=(int,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(own_work._of_threads) < 4:
            time.sleep(0.01)
        pid = os.fork()
        if pid == 0:  # a new thread gets the memory of one that is not here, and so its number
            def use():
                with torchgil.ThreadPool(1) as pool:
                    outcomes.append(pool.submit(int, "5").result(20))
            outcomes = []
            users = [threading.Thread(target=use) for _ in range(4)]
            for user in users:
                user.start()
            for user in users:
                user.join()
            os._exit(42 if outcomes == [5] * 4 else 1)
        _, status = os.waitpid(pid, 0)
        parents._shutdown_lock.release()
        parents.shutdown()
        assert os.waitstatus_to_exitcode(status) == 42
        """,
        timeout=60,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_a_worker_sets_its_threads_leaves_the_child_working():
    run_in_child(
        """
        import os, sys, torchgil, torchgil._threads
        torchgil._threads._set_num_threads_lock.acquire()  # as if a worker stood in it
        pid = os.fork()
        if pid == 0:
            with torchgil.ThreadPool(1) as pool:
                pool.submit(int).result(30)
            sys.exit(42)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        """,
        timeout=60,
    )


def test_ctrl_c_while_waiting_cancels_the_queue_and_finishes_what_runs():
    child = run_in_child(
        """
        import os, signal, time, torchgil
        futures = []
        def call(i):
            while i == 0 and not (len(futures) == 1000 and futures[-1].cancelled()):
                time.sleep(0.01)
            print("call", i, flush=True)
        with torchgil.ThreadPool(1) as pool:
            for i in range(1000):
                futures.append(pool.submit(call, i))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            futures[-1].result()
        """,
        timeout=60,
        check=False,
    )
    assert child.exit_code == -signal.SIGINT
    assert child.stdout.splitlines() == ["call 0"]
    assert child.stderr.rstrip().endswith("KeyboardInterrupt")
    assert child.stderr.count("Traceback") == 1
    assert "Exception ignored" not in child.stderr


def test_ctrl_c_while_the_block_waits_for_its_calls():
    child = run_in_child(
        """
        import os, signal, time, torchgil
        with torchgil.ThreadPool(1) as pool:
            for i in range(1000):
                pool.submit(time.sleep, 0.5)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        """,
        timeout=60,
        check=False,
    )
    assert child.exit_code == -signal.SIGINT
    assert "Exception ignored" not in child.stderr
