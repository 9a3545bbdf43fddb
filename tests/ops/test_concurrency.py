"""Proof by concurrency: kernels of several Python threads run at the same time, or one by one."""

import itertools
import threading
import time

import pytest

import torchgil
from torchgil.ops import witness

from ..conftest import in_threads
from .conftest import POLICIES, long_arguments

RELEASING = [name for name in POLICIES if name != "held"]


def overlaps(records):
    """Pairs of kernels, of two threads, that were running at one moment."""
    ordered = sorted(records, key=lambda r: r.begin_ns)
    return [(a, b) for a, b in itertools.pairwise(ordered) if b.begin_ns < a.end_ns]


def run_in_threads(policy, op, arguments, threads, calls):
    call = getattr(POLICIES[policy], op)
    with witness() as records:
        in_threads(lambda _: [call(*arguments) for _ in range(calls)], threads)
    return records


@pytest.mark.parametrize("policy", RELEASING)
def test_released_kernels_overlap(op, policy):
    arguments = long_arguments(op)
    with torchgil.intra_op_threads(1):
        for _ in range(10):
            records = run_in_threads(policy, op, arguments, threads=2, calls=5)
            assert len(records) == 10
            if overlaps(records):
                return
    pytest.fail(f"the kernels of two threads never overlapped under {policy}.{op}")


def test_held_kernels_never_overlap(op):
    records = run_in_threads("held", op, long_arguments(op), threads=4, calls=2)
    assert len(records) == 8
    assert overlaps(records) == []


@pytest.mark.parametrize("op", ["spin", "sleep"])
def test_four_threads_take_the_time_of_one_when_released_and_of_four_when_held(op):
    """A ratio within one run: 4 in theory, 2 is enough."""

    def wall_s(policy):
        begin = time.monotonic()
        in_threads(lambda _: getattr(policy, op)(0.1), 4)
        return time.monotonic() - begin

    assert wall_s(torchgil.held) > 2 * wall_s(torchgil.released)


def test_a_thread_of_pure_python_does_not_scale():
    """The control of the control: what cannot release the GIL must not seem to."""

    def count(_):
        end = time.thread_time() + 0.1  # processor time of this thread alone
        while time.thread_time() < end:
            pass

    def wall_s(n):
        begin = time.monotonic()
        in_threads(count, n)
        return time.monotonic() - begin

    assert wall_s(4) > 2 * wall_s(1)


@pytest.mark.parametrize("policy", POLICIES)
def test_any_op_by_any_path_from_many_threads_at_once(policy):
    from .conftest import OPS, small_arguments

    calls = [(getattr(POLICIES[policy], op), small_arguments(op)) for op in OPS]

    def run(i):
        for _ in range(50):
            for call, arguments in calls[i % len(calls) :] + calls[: i % len(calls)]:
                call(*arguments)
        return threading.get_native_id()

    assert len(set(in_threads(run, 8))) == 8
