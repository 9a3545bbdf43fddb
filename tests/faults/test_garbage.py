"""Garbage is not collected where the interpreter has its lock of all threads."""

from __future__ import annotations

import sys

from ..conftest import run_in_child


def test_no_garbage_is_collected_while_a_trace_lists_the_threads():
    """A tensor that ends there releases the GIL, and who gets it may want that lock: a deadlock."""
    child = run_in_child(
        """
        import gc, sys, threading, torch, torchgil
        from torchgil._gil_half import C
        with torchgil.trace():
            pass
        latch, inside, seen = threading.Event(), [False], []
        def new_threads():  # of which the frames are yet to be made
            for _ in range(8):
                threading.Thread(target=latch.wait).start()
        def watched(listing):
            def listed():
                inside[0] = True
                found = listing()
                inside[0] = False
                return found
            return listed
        gc.callbacks.append(lambda phase, _: seen.append(phase) if inside[0] else None)
        gc.set_threshold(1, 1, 1)
        C.thread_idents = watched(C.thread_idents)
        for _ in range(5):
            new_threads()
            with torchgil.trace():
                new_threads()
        print("in a trace:", len(seen))
        new_threads()
        watched(sys._current_frames)()
        print("without:", bool(seen))
        assert gc.isenabled()
        latch.set()
        """,
        timeout=60,
    )
    assert child.stdout.splitlines()[0] == "in a trace: 0"
    # The control. Before 3.11 frames are not made here; from 3.12 on a collection waits for a bytecode.
    if (3, 11) <= sys.version_info < (3, 12):
        assert child.stdout.splitlines()[1] == "without: True"
