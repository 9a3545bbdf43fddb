"""Proof by state: what PyGILState_Check said inside the kernel."""

import threading

import pytest
import torch

import torchgil
from torchgil.ops import witness

from .conftest import OPS, POLICIES, long_arguments, small_arguments

# adaptive keeps the GIL for short work and releases it for long.
HELD_IN_SHORT_CALL = {"released": False, "held": True, "adaptive": True, "torch.ops": False}
HELD_IN_LONG_CALL = {"released": False, "held": True, "adaptive": False, "torch.ops": False}


def test_the_kernel_of_a_short_call_sees_its_policy(op, policy, call):
    with witness() as records:
        call(*small_arguments(op))
    assert [(r.op, r.held_gil) for r in records] == [(op, HELD_IN_SHORT_CALL[policy])]


def test_the_kernel_of_a_long_call_sees_its_policy(op, policy, call):
    with witness() as records:
        call(*long_arguments(op))
    assert [(r.op, r.held_gil) for r in records] == [(op, HELD_IN_LONG_CALL[policy])]


@pytest.mark.parametrize("op", ["add", "matmul", "rms_norm"])
def test_with_gradients_too(op, policy, call):
    arguments = [a.requires_grad_() for a in small_arguments(op)]
    with witness() as records:
        call(*arguments)
    assert [(r.op, r.held_gil) for r in records] == [(op, HELD_IN_SHORT_CALL[policy])]


@pytest.mark.parametrize("policy", POLICIES)
def test_backward_runs_without_the_gil_whatever_the_forward_did(policy):
    x, weight = torch.randn(3, 4, requires_grad=True), torch.rand(4, requires_grad=True)
    y = POLICIES[policy].rms_norm(x, weight).sum()
    with witness() as records:
        y.backward()
    assert [(r.op, r.held_gil) for r in records] == [("rms_norm_backward", False)]


def test_each_policy_from_within_a_backward_hook():
    seen = {}

    def hook(grad):
        # Python code that the autograd engine calls: it took the GIL for that.
        for name, module in POLICIES.items():
            with witness() as records:
                module.matmul(grad, grad)
            seen[name] = records[0].held_gil
        return grad

    x = torch.randn(3, 3, requires_grad=True)
    x.register_hook(hook)
    (x * 2).sum().backward()
    assert seen == HELD_IN_SHORT_CALL


def test_a_kernel_is_recorded_with_its_thread_and_its_time():
    ids = []

    def run():
        ids.append(threading.get_native_id())
        torchgil.released.spin(0.01)

    with witness() as records:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    (record,) = records
    assert record.thread_id == ids[0] != threading.get_native_id()
    assert record.end_ns - record.begin_ns >= 10_000_000


def test_a_second_witness_is_refused_and_the_first_goes_on():
    with witness() as records:
        with pytest.raises(RuntimeError, match="recording already"), witness():
            pass
        torchgil.held.sleep(0)
    assert [r.op for r in records] == ["sleep"]


def test_an_op_whose_kernel_is_python_takes_the_gil_back():
    """The positive control: this is what the ops would look like, registered from Python."""
    seen = []
    library = torch.library.Library("torchgil_test_state", "DEF")
    library.define("held(Tensor x) -> Tensor")

    def kernel(x):
        # Python runs, so the GIL is held, in the middle of an op that torch.ops had released it for.
        with witness() as records:
            torchgil.held.add(x, x)
        seen.extend(r.held_gil for r in records)
        return x.clone()

    library.impl("held", kernel, "CPU")
    torch.ops.torchgil_test_state.held(torch.ones(2))
    assert seen == [True]
    library._destroy()


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "torch.ops"])
def test_every_op_is_under_every_policy(name):
    assert {n for n in dir(POLICIES[name]) if not n.startswith("_")} == {*OPS, "wait"}
    assert len(OPS) >= 6
