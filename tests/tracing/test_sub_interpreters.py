"""Beside a live sub-interpreter: who holds the GIL is still told from who does not.

`PyGILState_Check()` always answers yes once a sub-interpreter was made. Up to Python 3.11 all interpreters
share one GIL; from 3.12 on a sub-interpreter has one of its own, and what its threads do with that is none of
ours.
"""

from __future__ import annotations

import sys
import textwrap

import pytest

from ..conftest import run_in_child

MADE = """
    import threading, time, torch, torchgil
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    other = interpreters.create()
    def busy(seconds):  # in the other interpreter, in a thread of its own
        code = f"import time\\nend = time.monotonic() + {seconds}\\nwhile time.monotonic() < end: pass"
        run = getattr(interpreters, "run_string", None) or interpreters.exec
        thread = threading.Thread(target=run, args=(other, code), name="busy in another")
        thread.start()
        return thread
"""
OWN_GIL = sys.version_info >= (3, 12)


def in_child(code: str) -> None:
    body = textwrap.indent(textwrap.dedent(code), "        ")
    run_in_child(f"{MADE}\n    try:\n{body}\n    finally:\n        interpreters.destroy(other)\n")


def test_ops_are_held_only_where_they_are() -> None:
    in_child(
        """
    x = torch.ones(4)
    with torchgil.trace() as t, torchgil.ops.witness() as kernels:
        for _ in range(10):
            torchgil.released.add(x, x)
            torchgil.held.add(x, x)  # the control
    (op,) = [op for op in t.report().ops if op.name == "torchgil::add"]
    assert (op.calls, op.calls_held) == (20, 10), op
    assert [kernel.held_gil for kernel in kernels] == [False, True] * 10
    assert torchgil.audit(torchgil.released.spin, 0.05).verdict == "releases"
    assert torchgil.audit(torchgil.held.spin, 0.05).verdict == "holds"
    assert torchgil.audit(torch.ops.torchgil.spin, 0.05).verdict == "releases"
"""
    )


def test_callbacks_and_threads_of_no_interpreter_are_seen() -> None:
    # Through PyGILState_Ensure, which is told from a nested call by who holds the GIL.
    in_child(
        """
    import ctypes
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    numbers = (ctypes.c_int * 4)(3, 1, 2, 0)
    sort = ctypes.CDLL(None).qsort
    with torchgil.trace() as t:
        sort(numbers, 4, 4, compare(lambda a, b: (a[0] > b[0]) - (a[0] < b[0])))
    assert list(numbers) == [0, 1, 2, 3]
    main = t.report().threads[0]
    assert main.releases >= 4, main
"""
    )


@pytest.mark.skipif(OWN_GIL, reason="from 3.12 on it has a GIL of its own")
def test_who_holds_it_in_another_interpreter_is_told_from_threads_that_have_ended() -> None:
    in_child(
        """
    with torchgil.GilMonitor(interval=0.001) as monitor:
        thread = busy(0.5)
        time.sleep(0.2)
        while monitor.stats().held_share < 0.3:
            time.sleep(0.05)
    thread.join()
    assert monitor.stats().threads["(in a sub-interpreter)"] > 0.1, monitor.stats()
"""
    )


@pytest.mark.skipif(not OWN_GIL, reason="up to 3.11 there is one GIL for all interpreters")
def test_a_gil_of_its_own_is_none_of_ours() -> None:
    in_child(
        """
    def spins():
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
    with torchgil.trace(ops=False) as t, torchgil.GilMonitor(interval=0.001) as monitor:
        thread = busy(0.6)
        spins()
    thread.join()
    seen = {thread.name: thread for thread in t.report().threads}
    assert seen["MainThread"].preempted_s + seen["MainThread"].wait_s < 0.25, seen
    assert seen["busy in another"].held_s < 0.25, seen
    assert monitor.stats().threads["MainThread"] > 0.5, monitor.stats()
"""
    )
