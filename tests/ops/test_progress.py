"""Proof by progress: whether another Python thread gets anywhere while the kernel runs."""

import threading

import pytest

import torchgil
from torchgil.ops import witness

from .conftest import POLICIES, long_arguments, ticking

RELEASING = [name for name in POLICIES if name != "held"]


def ticks_inside(ticks, records):
    return [t for t in ticks for r in records if r.begin_ns < t < r.end_ns]


@pytest.mark.parametrize("policy", RELEASING)
def test_a_python_thread_advances_while_a_released_op_runs(op, policy):
    call, arguments = getattr(POLICIES[policy], op), long_arguments(op)
    with torchgil.intra_op_threads(1):
        for _ in range(50):  # the other thread must be woken within the op: surely in one of them
            with witness() as records, ticking() as ticks:
                call(*arguments)
            if ticks_inside(ticks, records):
                return
    pytest.fail(f"no Python thread ran within 50 calls of {policy}.{op}")


def test_no_python_thread_advances_while_a_held_op_runs(op):
    """In turn with the released op, the positive control, until the other thread was seen inside that."""
    arguments = long_arguments(op)
    with torchgil.intra_op_threads(1):
        for _ in range(50):
            with witness() as records, ticking() as ticks:
                getattr(torchgil.held, op)(*arguments)
                getattr(torchgil.released, op)(*arguments)
            held, released = sorted(records, key=lambda record: record.begin_ns)
            assert ticks_inside(ticks, [held]) == []
            if ticks_inside(ticks, [released]):
                return
    pytest.fail(f"the control: no Python thread ran within 50 calls of released.{op} either")


def test_released_wait_returns_true_once_another_thread_opens_the_latch():
    latch = torchgil.Latch()
    opener = threading.Thread(target=latch.open)
    opener.start()
    assert torchgil.released.wait(latch, timeout=60) is True
    opener.join()


def opener_of(latch):
    """A thread that opens the latch once it gets the GIL after the event."""
    entered = threading.Event()

    def open_it():
        entered.wait()
        latch.open()

    thread = threading.Thread(target=open_it)
    thread.start()
    return thread, entered


def test_adaptive_wait_releases_for_a_long_timeout():
    latch = torchgil.Latch()
    opener, entered = opener_of(latch)
    entered.set()
    assert torchgil.adaptive.wait(latch, timeout=60) is True
    opener.join()


def test_held_wait_can_only_time_out():
    # Between the event and the wait only a forced switch gives up the GIL. Such a switch lets the
    # opener win, so ask until one call got through whole.
    for _ in range(20):
        latch = torchgil.Latch()
        opener, entered = opener_of(latch)
        with torchgil.switch_interval(10):
            entered.set()
            opened = torchgil.held.wait(latch, timeout=0.05)
        opener.join()
        assert latch.is_open, "the thread that could have opened it did, once it got the GIL"
        if not opened:
            return
    pytest.fail("20 forced switches, one after the other, within one line")


def test_an_open_latch_lets_everybody_through():
    latch = torchgil.Latch()
    assert not latch.is_open
    assert repr(latch) == "<torchgil.Latch, closed>"
    latch.open()
    latch.open()
    assert latch.is_open
    assert repr(latch) == "<torchgil.Latch, open>"
    assert torchgil.held.wait(latch, timeout=0) is True


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e10])
@pytest.mark.parametrize("policy", ["released", "held", "adaptive"])
def test_a_timeout_that_is_none_is_a_value_error(policy, timeout):
    with pytest.raises(ValueError, match="timeout must be finite"):
        POLICIES[policy].wait(torchgil.Latch(), timeout)
