"""The trace against the real interpreter: what it sees, and that it leaves nothing behind."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.tracing.reading import me, op
from torchgil.tracing._recording import Kind

A = torch.ones(4, 4)
FINDINGS = Path(__file__).parents[2] / "benchmarks/results/findings"
released, held = torchgil.released, torchgil.held  # loaded before any trace counts


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
def test_n_released_calls_are_n_releases_and_n_held_calls_none(n):
    with torchgil.trace() as t:
        for _ in range(n):
            released.spin(0)
            held.spin(0)
    assert me(t.report()).releases == n
    assert not n or op(t.report(), "torchgil::spin").calls == 2 * n
    assert not n or op(t.report(), "torchgil::spin").calls_held == n


def test_windows_are_counted_on_every_thread():
    def work(i):
        for _ in range(50 * (i + 1)):
            released.spin(0)
        return threading.get_native_id()

    with torchgil.trace() as t:
        ids = in_threads(work, 3)
    releases = {thread.native_id: thread.releases for thread in t.report().threads}
    # The barrier and the pool release too; the spins are all there.
    assert [releases[i] >= 50 * (n + 1) for n, i in enumerate(ids)] == [True] * 3
    assert op(t.report(), "torchgil::spin").calls == 300
    assert op(t.report(), "torchgil::spin").calls_held == 0


def test_an_op_takes_the_gil_as_often_as_is_written_in_the_findings():
    kept = FINDINGS / f"{torch.__version__.split('+')[0]}.json"
    if not kept.exists():
        pytest.skip(f"no findings are kept for torch {torch.__version__}: benchmarks/findings.py makes them")
    written = {row["name"]: row["releases"] for row in json.loads(kept.read_text())["rows"]}
    keep = []
    b = torch.ones(4, 4)
    add = torch.ops.aten.add.Tensor
    calls = {
        "add_kept": lambda: keep.append(torch.add(A, b)),
        "add_freed": lambda: torch.add(A, b),
        "add_operator": lambda: A + b,
        "ops_add_kept": lambda: keep.append(add(A, b)),
        "ops_add_freed": lambda: add(A, b),
    }

    def releases(fn):
        fn()
        with torchgil.trace() as t:
            fn()
        return me(t.report()).releases

    counted = {name: releases(fn) for name, fn in calls.items()}
    assert counted == {name: written[name] for name in calls}
    # What no release of torch changes: the kernel's window, and one more that frees the result.
    assert (counted["add_kept"], counted["add_freed"]) == (1, 2)


# --- threads --------------------------------------------------------------------------------------


def test_threads_that_start_and_end_inside_a_trace_have_names_and_only_their_own_time():
    with torchgil.trace() as t:
        time.sleep(0.02)
        worker = threading.Thread(target=time.sleep, args=(0.01,), name="short-lived")
        worker.start()
        worker.join()
        time.sleep(0.02)
    (thread,) = [x for x in t.report().threads if x.name == "short-lived"]
    assert 0.009 < thread.wall_s < t.report().wall_s - 0.03
    assert thread.free_s > 0.009


def test_a_thread_in_a_window_all_along_is_free_all_along():
    latch = torchgil.Latch()
    inside = threading.Event()

    def wait():
        inside.set()
        released.wait(latch, 60)

    worker = threading.Thread(target=wait, name="waiter")
    worker.start()
    inside.wait()
    time.sleep(0.05)
    with torchgil.trace() as t:
        held.spin(0.01)
    latch.open()
    worker.join()
    (thread,) = [x for x in t.report().threads if x.name == "waiter"]
    assert thread.free_s == pytest.approx(t.report().wall_s, rel=0.05)


def test_a_thread_that_waits_when_the_trace_starts_and_stops_is_seen_waiting():
    code = """
        import sys, threading, time, torchgil
        sys.setswitchinterval(1000)  # nobody is forced to give way
        go, stop = threading.Event(), threading.Event()
        latch = torchgil.Latch()
        def wait():
            torchgil.released.wait(latch, 60)  # then it wants the GIL, and does not get it
            while not stop.is_set():
                time.sleep(0)
        worker = threading.Thread(target=wait, name="waiter")
        worker.start()
        torchgil.released.sleep(0.2)
        latch.open()
        torchgil.held.sleep(0.2)  # it asks for the GIL in here, before the trace
        with torchgil.trace() as t:
            torchgil.held.spin(0.05)
        stop.set()
        worker.join()
        (seen,) = [x for x in t.report().threads if x.name == "waiter"]
        print(seen)
        # It asked before, and got the GIL after: there is mostly no event of it.
        assert seen.releases == 0 and seen.wait_s > 0.5 * seen.wall_s, seen
        latch2 = torchgil.Latch()
        def wait_again():
            torchgil.released.wait(latch2, 60)
        worker = threading.Thread(target=wait_again, name="late")
        worker.start()
        torchgil.released.sleep(0.2)
        with torchgil.trace() as t:
            latch2.open()
            torchgil.held.sleep(0.2)
        worker.join()
        (seen,) = [x for x in t.report().threads if x.name == "late"]
        print(seen)
        assert seen.wait_s > 0.1 and seen.held_s == 0, seen
    """
    run_in_child(code)


def test_forced_switches_are_seen_as_preemption_and_not_as_release():
    stop = []

    def busy():
        while not stop:
            pass

    worker = threading.Thread(target=busy, name="busy")
    with torchgil.trace() as t:
        worker.start()
        end = time.monotonic() + 0.2
        while time.monotonic() < end:  # two threads of pure Python take turns
            pass
        stop.append(1)
        worker.join()
    threads = {x.name: x for x in t.report().threads}
    for name in ("MainThread", "busy"):
        assert threads[name].preempted_s > 0.02, t.report()
        assert threads[name].held_s > 0.02, t.report()
    assert threads["busy"].free_s < 0.02, t.report()
    total = threads["MainThread"].held_s + threads["busy"].held_s
    assert total <= t.report().wall_s * 1.0001  # at most one held at any time


def test_the_four_parts_add_up_to_the_wall_time_of_every_thread():
    with torchgil.trace() as t:
        in_threads(lambda i: [torch.mm(torch.ones(200, 200), torch.ones(200, 200)) for _ in range(5)], 3)
    for x in t.report().threads:
        assert x.free_s + x.held_s + x.wait_s + x.preempted_s == pytest.approx(x.wall_s, abs=1e-9)


def test_a_thread_of_the_kernels_making_that_calls_into_python_is_seen():
    # ctypes callbacks come in through PyGILState_Ensure and go out through PyGILState_Release.
    run_in_child("""
        import ctypes, threading, torchgil
        inner = []
        @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        def callback(_):
            inner.append(threading.get_native_id())
            torchgil.released.spin(0.001)
            sum(range(10000))
            return None
        libc = ctypes.CDLL(None)
        def run():
            thread = ctypes.c_ulong()
            assert libc.pthread_create(ctypes.byref(thread), None, callback, None) == 0
            libc.pthread_join(thread, None)
        run()  # imports what the callback needs
        with torchgil.trace() as t:
            run()
        (seen,) = [x for x in t.report().threads if x.native_id == inner[1]]
        print(t.report())
        assert seen.free_s > 0.0009 and seen.held_s > 0, seen
        # Nested: a callback on a thread that already has a thread state and holds the GIL.
        plain = ctypes.PYFUNCTYPE(None)(lambda: torchgil.released.spin(0))
        plain()
        with torchgil.trace() as t:
            for _ in range(10):
                plain()
        assert t.report().threads[0].releases == 10, t.report()
    """)


# --- exceptions, nesting, repetition --------------------------------------------------------------


def test_an_exception_through_a_window_leaves_the_states_right():
    wrong = torch.ones(2, 3)
    with torchgil.trace() as t:
        for _ in range(5):
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                released.matmul(wrong, wrong)
        held.spin(0.01)
    assert me(t.report()).releases == 5
    assert op(t.report(), "torchgil::spin").held_s > 0.009


def test_an_exception_in_the_block_takes_the_trace_down():
    with pytest.raises(ZeroDivisionError):
        with torchgil.trace() as t:
            _ = 1 / 0
    assert t.report().wall_s > 0
    with torchgil.trace():
        pass


def test_two_traces_at_once_are_a_clear_error_and_the_first_goes_on():
    with torchgil.trace() as t:
        with pytest.raises(RuntimeError, match="already running"):
            with torchgil.trace():
                pass
        released.spin(0)
    assert op(t.report(), "torchgil::spin").calls == 1


def test_a_trace_records_once_and_reports_after_its_end():
    t = torchgil.trace()
    with pytest.raises(RuntimeError, match="when the `with` block has ended"):
        t.report()
    with t:
        pass
    assert t.report() is t.report()
    with pytest.raises(RuntimeError, match="records once"):
        t.__enter__()


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "many", 2**40])
def test_a_bad_max_events_is_a_value_error(bad):
    with pytest.raises(ValueError, match="max_events"):
        torchgil.trace(max_events=bad)


def test_a_thousand_traces_and_the_last_is_exact():
    for _ in range(1000):
        with torchgil.trace(max_events=1000):
            pass
    with torchgil.trace() as t:
        released.spin(0)
    assert me(t.report()).releases == 1


def test_traces_start_and_stop_while_threads_come_go_and_release():
    stop = []

    def churn(_):
        while not stop:
            thread = threading.Thread(target=released.spin, args=(0,))
            thread.start()
            thread.join()
            torch.add(A, A)

    def trace(_):
        try:
            for _ in range(100):
                with torchgil.trace(max_events=5000) as t:
                    time.sleep(0.001)
                assert t.report().threads
        finally:
            stop.append(1)

    in_threads(lambda i: trace(i) if i == 0 else churn(i), 4)


# --- witnesses ------------------------------------------------------------------------------------


def test_without_the_lock_witness_windows_are_exact_and_switches_inferred():
    stop = []

    def busy():
        while not stop:
            pass

    worker = threading.Thread(target=busy, name="busy")
    with torchgil.trace(forced_switches=False) as t:
        worker.start()
        for _ in range(5):
            released.spin(0.01)
        stop.append(1)
        worker.join()
    r = t.report()
    assert op(r, "torchgil::spin").free_s > 0.049
    assert any("forced switches are inferred" in note for note in r.notes)
    # A static python starts its threads by direct calls, which then nobody sees.
    if not any("stay unseen" in note for note in r.notes):
        assert {x.name for x in r.threads} >= {"MainThread", "busy"}


def test_both_witnesses_tell_the_same_windows():
    def windows(forced_switches):
        with torchgil.trace(forced_switches=forced_switches) as t:
            for _ in range(20):
                released.spin(0.0001)
                torch.add(A, A)
        (thread,) = [x for x in t.report().recording.threads if x.native_id == threading.get_native_id()]
        return [kind for kind in thread.kinds if kind <= Kind.ACQUIRE]

    assert windows(True) == windows(False)


def test_without_a_gil_only_ops_are_recorded_and_the_report_says_so(monkeypatch):
    module = sys.modules["torchgil.tracing._trace"]  # the attribute of that name is the function
    monkeypatch.setattr(module, "has_gil", lambda: False)
    with torchgil.trace() as t:
        torch.add(A, A)
    r = t.report()
    assert [(o.name, o.verdict) for o in r.ops] == [("aten::add", "no GIL")]
    assert "without a GIL" in str(r)
