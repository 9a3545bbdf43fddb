"""The verdict on calls of known behaviour, and what an audit hands back."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from tests.support.retries import once
from tests.tracing.calls import CASES

released, held = torchgil.released, torchgil.held


def test_the_table_has_at_least_forty_calls_each_with_its_reason():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(len(case.reason) > 10 for case in CASES)
    assert {case.verdict for case in CASES} == {"releases", "holds"}


# Of those that take half a minute to make, test_two_witnesses.py asks it.
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if not c.slow])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_verdict_is_that_of_the_source(case):
    call = case.prepare()
    a = torchgil.audit(call)
    assert a.verdict == case.verdict, f"{case.reason}\n{a}\n{a.report}"
    if case.verdict == "releases":
        assert a.releases >= 1


def test_the_parts_add_up_and_the_fraction_is_theirs():
    a = torchgil.audit(released.spin, 0.02)
    assert a.free_s + a.held_s + a.wait_s + a.preempted_s == pytest.approx(a.wall_s, abs=1e-9)
    assert a.free_fraction == pytest.approx(a.free_s / a.wall_s)
    assert a.longest_hold_s <= a.held_s


def test_the_result_is_the_functions_own_and_arguments_are_passed_on():
    def fn(*args, **kwargs):
        return args, kwargs

    assert torchgil.audit(fn, 1, 2, fn=3, self=4).result == ((1, 2), {"fn": 3, "self": 4})


def test_an_exception_passes_through_and_the_trace_is_taken_down():
    with pytest.raises(ZeroDivisionError):
        torchgil.audit(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        torchgil.audit(lambda: (_ for _ in ()).throw(SystemExit(3)))
    assert torchgil.audit(held.spin, 0.001).verdict == "holds"


def test_an_audit_inside_a_trace_is_a_clear_error():
    with torchgil.trace():
        with pytest.raises(RuntimeError, match="already running"):
            torchgil.audit(int)


@pytest.mark.parametrize("n", [1, 3, 100])
def test_windows_are_counted_exactly(n):
    assert torchgil.audit(lambda: [released.spin(0) for _ in range(n)]).releases == n
    assert torchgil.audit(lambda: [held.spin(0) for _ in range(n)]).releases == 0


def test_a_call_that_does_both_is_partly():
    def both():
        released.spin(0.03)
        held.spin(0.03)

    def check():
        a = torchgil.audit(both)
        assert a.verdict == "partly"
        assert a.longest_hold_s == pytest.approx(0.03, rel=0.1)

    once(check)


def test_an_audit_judges_its_own_thread_and_not_the_others():
    stop = threading.Event()

    def other():
        while not stop.is_set():
            released.spin(0.001)

    worker = threading.Thread(target=other)
    worker.start()
    try:
        assert torchgil.audit(held.spin, 0.05).verdict == "holds"
    finally:
        stop.set()
        worker.join()


def test_preemption_is_not_taken_for_a_release():
    stop = []

    def busy():
        while not stop:
            pass

    def python():
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        a = torchgil.audit(python)
    finally:
        stop.append(1)
        worker.join()
    assert a.verdict == "holds"
    assert a.preempted_s > 0.02
    assert a.free_s < 0.001
    assert a.releases == 0


def test_an_audit_from_another_thread_judges_that_thread():
    results = []
    worker = threading.Thread(target=lambda: results.append(torchgil.audit(released.spin, 0.02)))
    worker.start()
    worker.join()
    assert results[0].verdict == "releases"


def test_an_audit_can_be_printed_and_says_what_it_measured():
    text = str(torchgil.audit(released.sleep, 0.02))
    assert text.startswith("releases: ")
    for word in ("free", "held", "waited", "preempted", "(1 release)"):
        assert word in text


def test_a_call_longer_than_the_buffer_is_judged_by_what_was_seen_and_says_so(monkeypatch):
    run_in_child("""
        import sys, torch, torchgil, torchgil.tracing._audit
        module = sys.modules["torchgil.tracing._audit"]
        module.MAX_EVENTS = 100
        a = torchgil.audit(lambda: [torch.ones(2) for _ in range(1000)])
        assert a.report.dropped > 0
        assert "dropped" in str(a), str(a)
        assert 0 < a.wall_s <= a.report.covered_s
    """)


# --- truth: against the times that the kernel itself took ----------------------------------------


def _busy(stop):
    while not stop:
        pass


def _within(measured_s: float, true_s: float) -> bool:
    return math.isclose(measured_s, true_s, rel_tol=0.02, abs_tol=100e-6)


@pytest.mark.parametrize("neighbour", ["alone", "beside a busy thread"])
@pytest.mark.parametrize("policy", ["released", "held"])
@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.05])
def test_free_and_held_are_what_the_kernel_itself_measured(policy, seconds, neighbour):
    from torchgil.ops import witness

    spin = getattr(torchgil, policy).spin
    stop = [] if neighbour != "alone" else [1]
    worker = threading.Thread(target=_busy, args=(stop,))
    worker.start()
    try:
        with witness() as records, torchgil.trace() as t:
            for _ in range(5):
                spin(seconds)
    finally:
        stop.append(1)
        worker.join()
    (op,) = [o for o in t.report().ops if o.name == "torchgil::spin"]
    true_s = sum(r.end_ns - r.begin_ns for r in records) * 1e-9
    assert [r.held_gil for r in records] == [policy == "held"] * 5
    assert op.calls == 5
    if policy == "released":
        assert _within(op.free_s, true_s), t.report()
        assert op.held_s < 100e-6
    else:
        assert _within(op.held_s, true_s), t.report()
        assert op.free_s < 100e-6


def test_the_busy_neighbour_is_what_is_waited_for():
    stop = []
    worker = threading.Thread(target=_busy, args=(stop,), name="busy")
    worker.start()
    try:
        with torchgil.trace() as t:
            for _ in range(10):
                released.sleep(0.02)  # longer than any wake-up: the GIL is lost for a switch interval
    finally:
        stop.append(1)
        worker.join()
    threads = {x.name: x for x in t.report().threads}
    waited = threads["MainThread"].wait_s
    assert waited > 0.01
    assert threads["busy"].held_s >= 0.9 * waited
    assert any("after torchgil::sleep" in hint for hint in t.report().hints) == (
        waited >= 0.2 * t.report().wall_s
    )


def test_numpy_and_torch_results_come_back_as_they_are():
    x = np.ones(3)
    assert torchgil.audit(np.add, x, x).result.tolist() == [2, 2, 2]
    assert torch.equal(torchgil.audit(torch.add, torch.ones(2), 1).result, torch.full((2,), 2.0))


@pytest.mark.parametrize("kind", ["coroutine", "async generator", "partial"])
def test_a_coroutine_function_is_refused(kind: str) -> None:
    async def coroutine() -> int:
        return 1

    async def generator() -> AsyncIterator[int]:
        yield 1

    fn: Any = {"coroutine": coroutine, "async generator": generator, "partial": functools.partial(coroutine)}[
        kind
    ]
    with pytest.raises(TypeError, match=r"is a coroutine function, .* audit what runs it"):
        torchgil.audit(fn)
    assert torchgil.audit(lambda: asyncio.run(coroutine())).result == 1
