"""A monitor knows threads by name after they have ended, and mixes none up with the next at its address."""

from __future__ import annotations

import _thread
import functools
import threading
import time
from collections.abc import Callable

import torchgil
from tests.conftest import run_in_child
from tests.tracing.loads import threads
from torchgil import held, released
from torchgil._gil_half import C
from torchgil.watching import _thread_life as thread_life


def run(work: Callable[[], object], name: str) -> None:
    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join()


def test_a_thread_that_has_ended_keeps_its_name() -> None:
    with torchgil.GilMonitor(interval=0.001) as monitor:
        run(lambda: held.spin(0.1), "engine")
        window, stats = monitor.window(10), monitor.stats()
        assert window.held_looks["engine"] > 10
        assert stats.held_looks["engine"] >= window.held_looks["engine"]
        assert monitor.window(10).held_looks["engine"] == window.held_looks["engine"]
    assert "engine" in monitor.stats().threads


def test_it_is_the_name_that_it_had_last() -> None:
    def work() -> None:
        held.spin(0.05)
        threading.current_thread().name = "late \ud800"

    with torchgil.GilMonitor(interval=0.001) as monitor:
        run(work, "early")
    assert monitor.stats().held_looks["late \ud800"] > 10
    assert "early" not in monitor.stats().threads


def test_a_thread_that_began_before_the_monitor_and_ended_amid_it() -> None:
    begin = threading.Event()

    def work() -> None:
        begin.wait()
        held.spin(0.1)

    with threads(1, work, "older"), torchgil.GilMonitor(interval=0.001) as monitor:
        begin.set()
        released.sleep(0.2)
    stats = monitor.stats()
    assert stats.held_looks["older-0"] > 10


def test_a_thread_that_ended_after_the_monitor_was_stopped() -> None:
    """In a process that has no other threads, of earlier tests, that end meanwhile."""
    run_in_child(
        """
        import threading, torch, torchgil
        end = threading.Event()

        def work():
            torchgil.held.spin(0.1)
            end.wait()

        monitor = torchgil.GilMonitor(interval=0.001)
        thread = threading.Thread(target=work, name="outlives")
        thread.start()
        monitor.start()  # it has begun before, and is met by looks
        torchgil.held.spin(0.01)
        torchgil.released.sleep(0.2)
        monitor.stop()
        end.set()
        thread.join()
        assert "(ended)" not in monitor.stats().threads, monitor.stats()
        """
    )


def test_threads_at_one_address_after_another_are_told_apart() -> None:
    """The interpreter uses the memory of a thread's state for the next."""
    done = threading.Event()

    def nameless(seconds: float) -> None:
        held.spin(seconds)
        done.set()

    with torchgil.GilMonitor(interval=0.001) as monitor:
        for _ in range(3):
            run(lambda: held.spin(0.05), "first")
            done.clear()
            _thread.start_new_thread(nameless, (0.1,))
            done.wait()
            time.sleep(0.01)  # it is gone
            run(lambda: held.spin(0.05), "second")
    stats = monitor.stats()
    looks = stats.held_looks
    # A thousand looks a second, at most, and fewer where the machine is busy.
    assert 0 < looks["first"] <= 200, stats
    assert 0 < looks["second"] <= 200, stats
    assert looks["(ended)"] >= max(looks["first"], looks["second"]), stats


def test_of_thousands_of_ended_threads_those_with_the_smallest_shares_are_summed_up() -> None:
    native = C.Monitor(0.0001, 1_000_000, threads={})

    def work(name: str) -> None:
        native.thread_begins(name)
        held.spin(0.0005)
        native.thread_ends(name)

    def met() -> int:
        return len(native.last(1000)[2])

    try:
        started = 0
        while met() < 1200 and started < 20_000:  # a busy machine leaves the looks few cores
            for _ in range(100):
                run(functools.partial(work, f"t{started}"), "")
                started += 1
    finally:
        native.stop()
    _, _, held_by = native.take()
    named = [name for name, _, _ in held_by if name and name[0] == "t"]
    assert len(named) == len(set(named))
    assert len(held_by) <= 1010  # 1,000 that have ended; those that live, and the others
    assert "(other)" in [name for name, _, _ in held_by]
    assert min(looks for _, looks, _ in held_by) > 0


def test_a_thread_state_that_several_take_for_a_thread_is_one() -> None:
    """As gevent does: its threads are greenlets, all in one thread of the interpreter's."""
    native = C.Monitor(0.001, 100, threads={})
    try:
        assert not native.thread_begins("greenlet")
    finally:
        native.stop()


def test_threading_is_left_as_it_was() -> None:
    before = threading.Thread._bootstrap_inner
    with torchgil.GilMonitor(), torchgil.GilMonitor():
        assert threading.Thread._bootstrap_inner is not before
    assert threading.Thread._bootstrap_inner is before


def test_whoever_wraps_it_meanwhile_stays_on_top_and_nothing_is_told_twice() -> None:
    before = threading.Thread._bootstrap_inner
    told = []

    class Listener:
        def thread_begins(self, name: str) -> bool:
            told.append(("begins", name))
            return len(told) == 1  # as a monitor answers: the second time it is known

        def thread_ends(self, name: str) -> None:
            told.append(("ends", name))

    first, second = Listener(), Listener()
    thread_life.listen(first)
    ours = threading.Thread._bootstrap_inner

    def theirs(thread: threading.Thread) -> None:
        ours(thread)

    try:
        threading.Thread._bootstrap_inner = theirs
        thread_life.leave(first)
        assert threading.Thread._bootstrap_inner is theirs
        run(int, "nobody listens")
        assert told == []
        thread_life.listen(second)
        run(int, "told")
        thread_life.leave(second)
        assert threading.Thread._bootstrap_inner is theirs
    finally:
        threading.Thread._bootstrap_inner = before
    assert told == [("begins", "told"), ("begins", "told"), ("ends", "told")]


def test_what_a_thread_raises_and_its_end_are_as_without() -> None:
    seen = []
    before, threading.excepthook = threading.excepthook, lambda arguments: seen.append(arguments)
    try:
        with torchgil.GilMonitor():
            run(lambda: 1 / 0, "fails")
    finally:
        threading.excepthook = before
    assert [(each.exc_type, each.thread.name) for each in seen] == [(ZeroDivisionError, "fails")]


def test_the_child_of_a_fork_has_threading_as_it_was_and_can_begin_anew() -> None:
    run_in_child(
        """
        import os, threading
        import torchgil

        before = threading.Thread._bootstrap_inner
        with torchgil.GilMonitor(interval=0.0001) as monitor:
            child = os.fork()
            if not child:
                assert threading.Thread._bootstrap_inner is before
                threading.Thread(target=int).start()
                monitor.start()
                thread = threading.Thread(target=torchgil.held.spin, args=(0.1,), name="of the child")
                thread.start()
                thread.join()
                assert monitor.stats().threads["of the child"] > 0
                monitor.stop()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        """
    )


def test_a_thread_runs_though_there_is_no_memory_to_note_its_name():
    """Whoever starts it waits until it has begun."""
    run_in_child(
        """
        import threading
        from torchgil.watching import _thread_life as thread_life

        class Listener:
            told = []
            def thread_begins(self, name):
                self.told.append(name)
                raise MemoryError
            def thread_ends(self, name):
                raise MemoryError

        class Ends(Listener):
            def thread_begins(self, name):
                return True

        for listener in (Ends(), Listener()):
            thread_life.listen(listener)
            ran = []
            thread = threading.Thread(target=ran.append, args=(1,), name="unnoted")
            thread.start()
            thread.join()
            assert ran == [1]
        assert Listener.told == ["unnoted"]
        """,
        timeout=30,
    )
