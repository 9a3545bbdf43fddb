"""Inputs that are written or dropped while an op reads them; tensors that die while the GIL is released."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref

import torch

import torchgil

from ..conftest import in_threads, run_in_child

gil_is_held = ctypes.pythonapi.PyGILState_Check  # PyDLL: called with the GIL as it is


def test_inputs_that_nobody_else_refers_to_live_until_the_op_ends():
    """A caller's only reference is dropped in the middle of the call that uses it."""

    def run(i):
        ops = [torchgil.released, torchgil.adaptive, torch.ops.torchgil][i % 3]
        for _ in range(20):
            held = [torch.full((256, 1024), 1.0), torch.full((256, 1024), 2.0)]
            dropped = threading.Thread(target=held.clear)
            a, b = held
            dropped.start()
            result = ops.add(*(pair := [a, b]), **(del_ := {}))
            del a, b, pair, del_
            dropped.join()
            assert result[0, 0] == result[-1, -1] == 3
        return True

    assert in_threads(run, 4) == [True] * 4


def test_writes_to_an_input_while_it_is_read_crash_nothing():
    """A data race: the values are anyone's, as docs/reliability.md says; shapes and memory are not."""
    x, weight, stop = torch.ones(512, 256), torch.ones(256), threading.Event()
    forward = torchgil.nogil(torch.nn.Sequential(torch.nn.Linear(256, 8), torch.nn.ReLU()), (x,))
    boxes = torch.rand(64, 4).cumsum(1)

    def write():
        while not stop.is_set():
            x.mul_(-1)
            x.fill_(float("nan"))
            boxes.neg_()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for ops in (torchgil.released, torchgil.held, torchgil.adaptive):
            for _ in range(20):
                assert ops.add(x, x).shape == ops.rms_norm(x, weight).shape == (512, 256)
                assert ops.matmul(x, x.mT).shape == (512, 512)
                kept = ops.nms(boxes, boxes[:, 0], 0.5)
                assert 0 < len(kept) <= 64
                assert kept.unique().shape == kept.shape
                assert forward(x).shape == (512, 8)
    finally:
        stop.set()
        writer.join()


def test_what_dies_while_the_gil_is_released_is_freed_with_it():
    """The autograd graph holds the last reference; backward drops it with the GIL released."""
    held = []
    x = torch.ones(3, 3, requires_grad=True) * 1
    weight = torch.ones(3, requires_grad=True)
    y = torchgil.released.rms_norm(x, weight)
    x.mark = 1  # Python's object is kept with the tensor
    weakref.finalize(x, lambda: held.append(gil_is_held()))
    del x
    assert held == []
    y.sum().backward()
    del y
    gc.collect()
    assert held == [1]


def test_an_intermediate_of_nogil_that_python_knows_is_freed_with_the_gil():
    run_in_child(
        """
        import ctypes, gc, threading, warnings, weakref
        import torch, torchgil
        warnings.simplefilter("ignore")
        held, made = [], []
        library = torch.library.Library("torchgil_test_dying", "DEF")
        library.define("make(Tensor x) -> Tensor")
        def make(x):
            result = x.clone()
            result.mark = 1
            weakref.finalize(result, lambda: held.append(ctypes.pythonapi.PyGILState_Check()))
            made.append(result.data_ptr())
            return result
        library.impl("make", make, "CPU")
        library.impl("make", lambda x: torch.empty_like(x), "Meta")

        class Uses(torch.nn.Module):
            def forward(self, x):
                return torch.ops.torchgil_test_dying.make(x).sum() + 1

        x = torch.ones(3)
        forward = torchgil.nogil(Uses(), (x,))
        def run():
            for _ in range(50):
                assert forward(x) == 4
        threads = [threading.Thread(target=run) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        gc.collect()
        assert held == [1] * len(made) == [1] * 200, (len(held), len(made))
        """,
        timeout=100,
    )


def test_the_witness_of_a_free_without_the_gil_can_say_no():
    """The control: the same question where the GIL is not held."""
    check = ctypes.CDLL(None).PyGILState_Check if hasattr(ctypes.CDLL(None), "PyGILState_Check") else None
    if check is not None:  # CDLL releases the GIL around the call
        assert check() == 0
    assert gil_is_held() == 1
