"""A trace ends, whatever comes amid its start and its end."""

from __future__ import annotations

import sys
import threading

import pytest

import torchgil
from tests.conftest import in_threads, run_in_child

INTERRUPTED = """
    import gc, itertools, os, sys, threading, torchgil
    from torchgil._gil_half import C
    import torchgil.tracing
    from tests.support.interrupts import Interrupts
    ours = os.path.dirname(torchgil.tracing.__file__)
    start, callbacks = threading.Thread.start, list(gc.callbacks)

    for nth in itertools.count(1):
        trace, begun = torchgil.trace(), False
        interrupts = Interrupts(nth, ours)
        try:
            sys.setprofile(interrupts)
            with trace:
                begun = True
                sys.setprofile(interrupts)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert not C.trace_running() and threading.Thread.start is start, interrupts.at
        assert gc.isenabled() and gc.callbacks == callbacks, interrupts.at
        if begun:
            assert trace.report().threads, interrupts.at
        if interrupts.left > 0:
            break
    print(nth)
"""


def test_ctrl_c_at_any_step_ends_it_and_keeps_what_was_recorded() -> None:
    child = run_in_child(INTERRUPTED)
    assert int(child.stdout) > 20  # so many steps were interrupted, the last of them none


def test_threads_that_stop_it_together_all_find_the_report() -> None:
    for _ in range(20):
        trace = torchgil.trace().start()

        def stop(_: int, trace: torchgil.tracing.Trace = trace) -> int:
            trace.stop()
            return trace.report().dropped

        assert in_threads(stop, 3) == [0, 0, 0]


def test_a_signal_handler_that_ends_it_amid_its_own_end() -> None:
    run_in_child(
        """
        import sys, torchgil
        for nth in range(1, 200):
            trace, left = torchgil.trace().start(), nth

            def handler(frame, event, called):
                global left
                left -= 1
                if not left:
                    sys.setprofile(None)
                    trace.stop()

            sys.setprofile(handler)
            trace.stop()
            sys.setprofile(None)
            assert trace.report().threads
        """,
        timeout=60,
    )


class NotMade(threading.Thread):
    def __init__(self) -> None:
        pass


class OddName(threading.Thread):
    @property
    def name(self) -> str:
        raise ValueError("no name")

    @name.setter
    def name(self, _: str) -> None: ...


class OddNumber(threading.Thread):
    @property
    def native_id(self) -> int:
        raise ValueError("no number")


class NumberForName(threading.Thread):
    name = 5  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "shown"), [(OddName, "Thread-"), (OddNumber, "Thread-"), (NumberForName, "5")]
)
def test_threads_of_an_odd_class_are_named(kind: type[threading.Thread], shown: str) -> None:
    with torchgil.trace() as trace:
        thread = kind(target=lambda: None)
        thread.start()
        thread.join()
    names = [each.name for each in trace.report().threads]
    assert any(name.startswith(shown) for name in names), names


def test_a_thread_that_could_not_start_does_no_harm() -> None:
    with torchgil.trace() as trace, pytest.raises(RuntimeError, match="not called"):
        NotMade().start()
    assert trace.report().threads


def test_a_wrapper_that_somebody_kept_remembers_no_threads() -> None:
    original = threading.Thread.start
    try:
        with torchgil.trace():
            ours = threading.Thread.start
            threading.Thread.start = lambda self: ours(self)  # type: ignore[method-assign]
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        started = next(c.cell_contents for c in ours.__closure__ or () if hasattr(c.cell_contents, "append"))
        assert thread not in started
    finally:
        threading.Thread.start = original  # type: ignore[method-assign]


def test_a_trace_that_begins_just_as_another_ends_leaves_threadings_own_function() -> None:
    original = threading.Thread.start
    first, second = torchgil.trace(ops=False).start(), torchgil.trace(ops=False)
    ended = []

    def end_the_first(frame: object, event: str, called: object) -> None:
        if event == "c_call" and getattr(called, "__name__", "") == "trace_start" and not ended:
            ended.append(True)
            first.stop()

    sys.setprofile(end_the_first)
    try:
        second.start()
    finally:
        sys.setprofile(None)
    second.stop()
    assert ended
    assert threading.Thread.start is original
