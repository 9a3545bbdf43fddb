"""Ctrl-C in the main thread: during long work, and while it waits for something of ours."""

from __future__ import annotations

from ..conftest import run_in_child
from ..support.compiling import needs_compiler

CODE = """
    import os, signal, sys, threading, time
    import torch, torchgil
    from tests.support.unchanged import unchanged

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


COMPILER = """#!/bin/sh
case "$*" in *-version*) exec c++ "$@" ;; esac
echo $$ > "$0.runs.part" && mv "$0.runs.part" "$0.runs"
exec sleep 600
"""


@needs_compiler
def test_ctrl_c_while_it_compiles_ends_the_compiler_and_keeps_nothing(tmp_path):
    compiler = tmp_path / "slow-c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    child = run_in_child(
        f"""
        import contextlib, os, signal, threading, time
        import torch, torchgil

        runs, kept = "{compiler}.runs", "{tmp_path}/packages"
        model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval(), torch.ones(2, 4)
        torchgil.nogil(model, (x,))  # what a first export sets up is none of this
        if not os.fork():
            # Once it waits for the compiler: a Ctrl-C amid subprocess.Popen() leaves the process alone.
            def waits(pid):
                return open(f"/proc/{{pid}}/stat").read().rpartition(") ")[2][0] == "S"
            while not (os.path.exists(runs) and waits(os.getppid())):
                time.sleep(0.01)
            os.kill(os.getppid(), signal.SIGINT)
            os._exit(0)
        try:
            torchgil.nogil(model, (x,), backend="inductor", cache_dir=kept)
        except KeyboardInterrupt:
            print("interrupted")
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:  # subprocess waits a quarter of a second for a child that it has killed
                os.waitpid(-1, 0)  # a compiler that ran on would be waited for
        assert os.listdir(kept) == []
        other = threading.Thread(target=lambda: print(torchgil.nogil(model, (x,))(x).shape))
        other.start()  # the lock before torch.export is free
        other.join(60)
        """,
        env={"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")},
    )
    assert child.stdout == "interrupted\ntorch.Size([2, 4])\n"
