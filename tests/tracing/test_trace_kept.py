"""What a trace keeps: as many events as asked for, the oldest or the newest, of all ops or of none."""

from __future__ import annotations

import threading

import pytest
import torch

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.tracing.reading import me, op

A = torch.ones(4, 4)
released, held = torchgil.released, torchgil.held  # loaded before any trace counts


@pytest.mark.parametrize("max_events", [1, 10, 64, 1000])
def test_no_more_events_than_asked_for_are_kept_and_the_rest_is_counted(max_events):
    with torchgil.trace(max_events=max_events) as t:
        for _ in range(1000):
            torch.add(A, A)
    r = t.report()
    assert r.events <= max_events
    assert r.dropped > 0
    assert r.covered_s < r.wall_s
    assert f"{r.dropped} events were dropped" in str(r)
    for x in r.threads:
        assert x.wall_s <= r.covered_s + 1e-9


def test_an_op_name_of_any_length_and_many_of_them_are_kept():
    names = [f"step {i} " + "x" * 200 for i in range(2000)]
    with torchgil.trace() as t:
        for name in names:
            with torch.profiler.record_function(name):
                pass
    assert {o.name for o in t.report().ops} >= set(names)


def test_names_beyond_the_room_for_them_are_said_to_be_lost():
    with torchgil.trace() as t:
        for i in range(60):
            with torch.profiler.record_function(f"{i}" + "x" * 100_000):
                pass
    assert op(t.report(), "(name lost)").calls > 0


def test_a_thousand_threads_with_a_few_events_each_drop_none():
    run_in_child("""
        import threading, torchgil
        threading.stack_size(64 << 10)
        leave = threading.Event()
        threads = [threading.Thread(target=leave.wait) for _ in range(1500)]
        with torchgil.trace() as t:
            [thread.start() for thread in threads]
            leave.set()
            [thread.join() for thread in threads]
        report = t.report()
        assert report.dropped == 0, report.notes
        assert len(report.threads) >= 1500
    """)


@pytest.mark.parametrize("bad", ["newer", None, 1])
def test_a_bad_keep_is_a_value_error(bad):
    with pytest.raises(ValueError, match="keep must be 'oldest' or 'newest'"):
        torchgil.trace(keep=bad)


@pytest.mark.parametrize("max_events", [1, 10, 1000, 20_000])
def test_the_newest_events_stay_where_they_are_asked_for(max_events):
    with torchgil.trace(keep="newest", max_events=max_events) as t:
        for _ in range(5000):
            torch.add(A, A)
        released.spin(0.005)
    r = t.report()
    assert r.events <= max_events
    assert r.dropped == 0
    assert r.wall_s == r.covered_s
    assert any("older events were given up" in note for note in r.notes)
    mine = me(r)
    assert mine.free_s + mine.held_s + mine.wait_s + mine.preempted_s == pytest.approx(r.wall_s, abs=1e-9)
    if max_events >= 1000:
        assert op(r, "torchgil::spin").calls == 1
        assert 0 < op(r, "aten::add").calls < 5000
        assert mine.free_s > 0.005


def test_where_all_fits_keeping_the_newest_keeps_all():
    with torchgil.trace(keep="newest") as t:
        for _ in range(100):
            torch.add(A, A)
    assert op(t.report(), "aten::add").calls == 100
    assert t.report().notes == ()


def test_the_newest_events_of_a_thread_that_long_did_nothing_say_what_it_does():
    started = threading.Event()
    with torchgil.trace(keep="newest", max_events=2000) as t:
        worker = threading.Thread(target=lambda: (started.set(), released.spin(1)), name="worker")
        worker.start()
        started.wait()
        released.sleep(0.1)  # it is in the op when what follows fills the buffer
        for _ in range(2000):
            torch.add(A, A)
        released.sleep(0.01)  # so that the worker has its share of two cores
    worker.join()
    (seen,) = [x for x in t.report().threads if x.name == "worker"]
    assert seen.free_s == pytest.approx(t.report().wall_s)
    assert op(t.report(), "torchgil::spin").calls == 1
    assert op(t.report(), "torchgil::spin").free_s == pytest.approx(t.report().wall_s)


def test_keeping_the_newest_while_threads_come_go_and_are_more_than_fit():
    def churn(i):
        for _ in range(300):
            thread = threading.Thread(target=lambda: [torch.add(A, A) for _ in range(10)], name="short")
            thread.start()
            thread.join()

    for max_events in (1, 3, 500, 5000):
        with torchgil.trace(keep="newest", max_events=max_events) as t:
            in_threads(churn, 4)
        r = t.report()
        assert r.events <= max_events + 10  # an op that was open when the kept stretch began starts with it
        for x in r.threads:
            parts = x.free_s + x.held_s + x.wait_s + x.preempted_s
            assert parts == pytest.approx(x.wall_s, abs=1e-9)
            assert x.wall_s <= r.wall_s + 1e-9


def test_a_report_on_the_last_stretch_speaks_of_no_more():
    with torchgil.trace() as t:
        for _ in range(50):
            torch.add(A, A)
        released.spin(0.05)
        released.spin(0.01)
    last = t.report(last=0.03)
    assert last.wall_s == pytest.approx(0.03, abs=1e-9)
    assert [o.name for o in last.ops] == ["torchgil::spin"]
    assert op(last, "torchgil::spin").calls == 2
    assert op(last, "torchgil::spin").wall_s <= 0.03
    assert t.report(last=100).wall_s == t.report().wall_s


def test_without_ops_the_gil_is_recorded_as_ever():
    with torchgil.trace(ops=False) as t:
        for _ in range(10):
            released.spin(0.001)
    assert t.report().ops == ()
    assert me(t.report()).releases == 10
    assert me(t.report()).free_s > 0.009
    with torchgil.trace() as t:
        released.spin(0)
    assert op(t.report(), "torchgil::spin").calls == 1
