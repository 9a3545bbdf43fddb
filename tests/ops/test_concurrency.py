"""Proof by concurrency: kernels of several Python threads run at the same time, or one by one."""

import itertools
import threading
import time

import pytest

import torchgil
from torchgil.ops import witness

from ..conftest import in_threads
from ..support.retries import once
from .conftest import POLICIES, long_arguments

RELEASING = [name for name in POLICIES if name != "held"]


def most_at_once(records):
    """How many kernels, each of another thread, were running at one moment."""
    edges = [(r.begin_ns, 1) for r in records] + [(r.end_ns, -1) for r in records]
    return max(itertools.accumulate(step for _, step in sorted(edges)))


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
            if most_at_once(records) == 2:
                return
    pytest.fail(f"the kernels of two threads never overlapped under {policy}.{op}")


def test_held_kernels_never_overlap(op):
    records = run_in_threads("held", op, long_arguments(op), threads=4, calls=2)
    assert len(records) == 8
    assert most_at_once(records) == 1


@pytest.mark.parametrize("op", ["spin", "sleep"])
def test_four_threads_are_in_a_released_op_at_once(op):
    def all_four():
        assert most_at_once(run_in_threads("released", op, (0.1,), threads=4, calls=1)) == 4

    once(all_four)  # a busy machine may start one of them after another has ended


def test_threads_of_pure_python_run_in_turns_and_released_ones_at_once():
    """The control of the controls: what cannot release the GIL must not seem to."""

    def count(_):
        end = time.thread_time() + 0.05  # processor time of this thread alone
        while time.thread_time() < end:
            pass

    def together(call):
        """For how long the four had the GIL in all, for how long they were free of it, of how long."""
        with torchgil.trace(ops=False) as t:
            in_threads(call, 4)
        four = [thread for thread in t.report().threads if thread.name != "MainThread"]
        return sum(x.held_s for x in four), sum(x.free_s for x in four), t.report().wall_s

    held_s, _, wall_s = together(count)
    assert 0.1 < held_s <= wall_s

    def beside_each_other():
        _, free_s, wall_s = together(lambda _: torchgil.released.sleep(0.1))
        assert free_s > 2 * wall_s

    once(beside_each_other)


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
