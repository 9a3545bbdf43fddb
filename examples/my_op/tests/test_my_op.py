"""softsign: its values, its gradients, and that it releases the GIL, proved in three ways."""

import threading

import pytest
import torch
import torchgil

import my_op

CALLS = {
    "released": my_op.released.softsign,
    "held": my_op.held.softsign,
    "adaptive": my_op.adaptive.softsign,
    "torch.ops": torch.ops.my_op.softsign,
}


@pytest.fixture(scope="module")
def large():
    return torch.randn(2**24)  # some tens of milliseconds of work


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values(call, dtype):
    for x in (torch.randn(5, 7), torch.randn(7, 5).t(), torch.empty(0)):
        x = x.to(dtype)
        torch.testing.assert_close(call(x), torch.nn.functional.softsign(x))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_wrong_dtypes_are_refused(call):
    with pytest.raises(TypeError, match="softsign: x must be of a floating dtype, got Long"):
        call(torch.arange(3))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gradients(call):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))


def test_torch_can_trace_it():
    for x in (torch.randn(3, 4), torch.randn(4, 3, requires_grad=True).t()):
        torch.library.opcheck(torch.ops.my_op.softsign.default, (x,))


# ---- The GIL. By the trace: the share of the calls in which it was free. More than one, since a busy machine
# may take the core away for some milliseconds just when the GIL is held.


@pytest.mark.releases_gil(min_free=0.9)
def test_released_releases(large):
    for _ in range(5):
        my_op.released.softsign(large)


@pytest.mark.releases_gil(min_free=0.9)
def test_torch_ops_releases(large):
    for _ in range(5):
        torch.ops.my_op.softsign(large)


def test_the_trace_sees_a_hold(large):
    """The positive control: what catches a hold is shown one."""
    assert torchgil.audit(my_op.held.softsign, large).verdict == "holds"


# ---- By progress, without a stopwatch: a thread that waits at a latch advances, or does not.


def another_thread_advances(call, x):
    latch, order = torchgil.Latch(), []

    def other():
        torchgil.released.wait(latch, timeout=60)
        order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with torchgil.switch_interval(60):  # nobody is made to give way: the call gives the GIL, or nobody does
        latch.open()
        result = call(x)
        order.append("call")
    thread.join()
    del result  # not before: freeing a tensor releases the GIL as well
    return order == ["other", "call"]


def test_another_thread_advances_while_released_runs(large):
    # Several tries: a busy machine may let the other thread run too late.
    assert any(another_thread_advances(my_op.released.softsign, large) for _ in range(20))


def test_no_other_thread_advances_while_held_runs(large):
    assert not any(another_thread_advances(my_op.held.softsign, large) for _ in range(5))


def test_adaptive_keeps_the_gil_for_short_work(large):
    assert torchgil.audit(my_op.adaptive.softsign, torch.ones(4)).releases == 0
    assert torchgil.audit(my_op.adaptive.softsign, large).releases == 1
