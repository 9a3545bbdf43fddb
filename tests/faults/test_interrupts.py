"""Ctrl-C in the main thread: during long work, and while it waits for something of ours."""

from __future__ import annotations

from ..conftest import run_in_child

CODE = """
    import os, signal, sys, threading, time
    import torch, torchgil
    from tests.unchanged import unchanged

    def interrupted(after_s):  # from another process: a thread of ours could not while the GIL is held
        parent = os.getpid()
        if not (pid := os.fork()):
            time.sleep(after_s)
            os.kill(parent, signal.SIGINT)
            os._exit(0)
        return pid

    def forever(x):
        there.set()
        latch.wait()
        return x

    latch, there = threading.Event(), threading.Event()
    pool, batcher = torchgil.ThreadPool(1), torchgil.Batcher(forever, max_delay=0)
    class Long(torch.nn.Module):
        def forward(self, x):
            torch.ops.torchgil.spin(0.3)
            return x + 1
    x = torch.ones(2)
    forward = torchgil.nogil(Long(), (x,))
    work = {
        "released": lambda: torchgil.released.spin(0.3),
        "held": lambda: torchgil.held.spin(0.3),
        "torch.ops": lambda: torch.ops.torchgil.sleep(0.3),
        "nogil": lambda: forward(x),
        "a pool's future": lambda: pool.submit(latch.wait).result(),
        "a batcher's future": lambda: batcher.submit(x).result(),
    }
    pool.submit(int).result()
    batcher.submit(x)
    there.wait()  # its worker is, and has no thread beside it any more that was to set it up
    for kind, call in work.items():
        with unchanged():
            pid = interrupted(0.1)
            try:
                call()
                while True:  # Python acts on it at the end of the op
                    time.sleep(1)
            except KeyboardInterrupt:
                print(kind)
            os.waitpid(pid, 0)
        assert torch.equal(torchgil.released.add(x, x), x * 2)
        with torchgil.trace() as t:
            torchgil.released.spin(0.001)
        assert [op.calls for op in t.report().ops] == [1], t.report()
    latch.set()
    batcher.shutdown()
    pool.shutdown()
"""


def test_ctrl_c_is_acted_on_and_leaves_all_as_it_was():
    kinds = ["released", "held", "torch.ops", "nogil", "a pool's future", "a batcher's future"]
    assert run_in_child(CODE, timeout=60).stdout.splitlines() == kinds
