"""What runs here cannot be copied, and the attempt does it no harm; a copied setting is another block."""

import copy
import pickle
import sys

import pytest
import torch

import torchgil
from torchgil.ops import witness

COPIES = [copy.copy, copy.deepcopy, lambda obj: pickle.loads(pickle.dumps(obj))]


@pytest.fixture(params=COPIES, ids=["copy", "deepcopy", "pickle"])
def copied(request):
    return request.param


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    "make",
    [
        torchgil.trace,
        lambda: torchgil.Watchdog(1),
        torchgil.GilMonitor,
        lambda: torchgil.ThreadPool(1),
        lambda: torchgil.Batcher(double),
        witness,
    ],
    ids=["trace", "Watchdog", "GilMonitor", "ThreadPool", "Batcher", "witness"],
)
def test_what_runs_here_is_not_copied_and_works_on(make, copied):
    obj = make()
    wanted = f"this {type(obj).__name__} cannot be copied or pickled"
    with pytest.raises(TypeError, match=wanted):
        copied(obj)
    with obj:
        with pytest.raises(TypeError, match=wanted):
            copied(obj)
        torchgil.released.spin(0.001)
    with pytest.raises(TypeError, match=wanted):
        copied(obj)
    with make():  # the first one has ended
        pass


def test_a_report_is_copied_and_pickled(copied):
    with torchgil.trace() as t:
        torch.ones(2).add(1)
    report = t.report()
    other = copied(report)
    assert other == report
    assert other.ops == report.ops
    assert str(other) == str(report)


@pytest.mark.parametrize(
    ("make", "get", "inside"),
    [
        (lambda: torchgil.switch_interval(0.01), sys.getswitchinterval, pytest.approx(0.01)),
        (lambda: torchgil.intra_op_threads(3), torch.get_num_threads, 3),
        (torchgil.gil_priority, lambda: None, None),
    ],
    ids=["switch_interval", "intra_op_threads", "gil_priority"],
)
def test_a_copy_of_an_open_block_is_a_block_of_its_own(make, get, inside, copied):
    before = get()
    block = make()
    with block:
        other = copied(block)
        with other:
            assert get() == inside
        assert get() == inside
    assert get() == before
    with other:
        assert get() == inside
    assert get() == before
