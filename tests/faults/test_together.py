"""Everything at work at once while the process ends, forks, starts others and is interrupted."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from ..conftest import run_in_child

PY_SPY = shutil.which("py-spy", path=os.path.dirname(sys.executable))


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "everything.pool.submit(sys.exit, 3).exception()"])
def test_the_process_ends_in_time_and_in_silence_whatever_runs(end):
    child = run_in_child(
        f"""
        import sys, threading, torch, torchgil
        from tests.faults.everything import Everything
        everything = Everything()
        everything.start()
        def of_a_users_own():  # with tensors, torch itself would abort: docs/reliability.md
            while True:
                torchgil.released.sleep(0.0005)
        threading.Thread(target=of_a_users_own, daemon=True).start()
        {end}
        """,
        timeout=60,
        whole_end=True,
    )
    assert (child.exit_code, child.stderr) == (0, "")


def test_forks_leave_the_parent_at_work_and_the_child_able():
    child = run_in_child(
        """
        import os, torch, torchgil
        from tests.faults.everything import at_work, uses_it_all
        from tests.support.unchanged import unchanged
        with at_work():
            for _ in range(3):
                if not (pid := os.fork()):
                    uses_it_all()
                    os._exit(7)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        """,
        timeout=60,
    )
    assert child.stderr == ""


def test_processes_of_every_start_method_work_beside_it_all():
    child = run_in_child(
        """
        import multiprocessing, multiprocessing.forkserver, multiprocessing.resource_tracker, os, sys
        import torch, torchgil
        from tests.faults.everything import at_work, uses_it_all
        with at_work():
            for method in ("fork", "spawn", "forkserver"):
                process = multiprocessing.get_context(method).Process(target=uses_it_all)
                process.start()
                process.join(90)
                print(method, process.exitcode)
                process.close()
        multiprocessing.forkserver._forkserver._stop()
        multiprocessing.resource_tracker._resource_tracker._stop()
        """,
        timeout=120,
    )
    assert child.stdout.split() == ["fork", "0", "spawn", "0", "forkserver", "0"]
    assert child.stderr == ""


def test_an_exception_in_a_process_of_its_own_is_its_exit_code():
    """The control: what fails in such a process is seen."""
    child = run_in_child(
        """
        import multiprocessing
        process = multiprocessing.get_context("fork").Process(target=int, args=("no number",))
        process.start()
        process.join(60)
        print(process.exitcode)
        """
    )
    assert child.stdout == "1\n"
    assert "ValueError" in child.stderr


def test_callbacks_may_call_everything_and_raise():
    """Nothing of ours is locked while a user's Python runs."""
    child = run_in_child(
        """
        import gc, logging, threading, torch, torchgil
        logging.disable()
        other = torchgil.Batcher(lambda x: x + 1, max_delay=0)
        pool = torchgil.ThreadPool(2)
        lock, called = threading.Lock(), set()
        x = torch.ones(2)

        def everything(name, fails=True):
            called.add(name)
            with lock:
                assert other.submit(x).result(60).sum() == 4
                assert pool.submit(torchgil.released.add, x, x).result(60).sum() == 4
                with torchgil.Watchdog(threshold=1, on_hold=print), torchgil.gil_priority():
                    torchgil.held.add(x, x)
                try:
                    with torchgil.trace():
                        torchgil.released.add(x, x)
                except RuntimeError as error:  # one runs already, on another thread
                    assert "already" in str(error), error
                batcher.stats(), other.stats(), pool.stats(), watchdog.holds
                torchgil.set_adaptive_threshold(torchgil.adaptive_threshold())
            if fails:
                raise KeyError(name)

        class InGarbage:
            def __init__(self):
                self.itself = self
            def __del__(self):
                everything("__del__", fails=False)

        def collate(requests):
            everything("collate", fails=False)
            return torch.cat(requests)

        def split(result, rows):
            everything("split", fails=False)
            return list(result.split(rows))

        def fn(batch):
            InGarbage()
            gc.collect()
            everything("fn", fails=False)
            return batch * 2

        def on_hold(hold):
            everything("on_hold")

        batcher = torchgil.Batcher(fn, max_delay=0, collate=collate, split=split)
        watchdog = torchgil.Watchdog(threshold=0.05, on_hold=on_hold)
        with watchdog, batcher:
            torchgil.held.spin(0.2)
            requests = [batcher.submit(x) for _ in range(3)]
            for request in requests:
                request.add_done_callback(lambda _: everything("done callback"))
                assert request.result(60).sum() == 4
            y = torchgil.released.rms_norm(torch.ones(2, requires_grad=True) * 1, x)
            y.register_hook(lambda gradient: everything("backward hook", fails=False))
            y.sum().backward()
        expected = {"collate", "split", "fn", "on_hold", "done callback", "backward hook", "__del__"}
        assert called == expected, called ^ expected
        other.shutdown()
        pool.shutdown()
        print("end")
        """,
        timeout=60,
    )
    assert child.stdout == "end\n", child


@pytest.mark.peer
@pytest.mark.skipif(PY_SPY is None, reason="pip install py-spy")
def test_py_spy_attached_to_a_trace_changes_no_number():
    """It stops the process each time it looks."""
    child = run_in_child(
        """
        import os, subprocess, sys, threading, torch, torchgil
        from torchgil import held, released
        torch.set_num_threads(1)
        def work():
            for _ in range(100):
                released.spin(0.002), held.spin(0.0005), torch.ones(10) + 1
        def dump():
            command = [sys.argv[1], "dump", "--pid", str(os.getpid())]
            return subprocess.run(command, capture_output=True, text=True)
        with torchgil.trace() as traced:
            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            looks = [dump() for _ in range(3)]
            for thread in threads:
                thread.join()
        if looks[0].returncode:
            print("refused:", looks[0].stderr.strip().splitlines()[-1])
            sys.exit()
        assert "work" in looks[0].stdout, looks[0]
        report = traced.report()
        assert report.dropped == 0
        for thread in report.threads:
            parts = thread.free_s + thread.held_s + thread.wait_s + thread.preempted_s
            assert abs(parts - thread.wall_s) < 1e-6, thread
        (spin,) = [op for op in report.ops if op.name == "torchgil::spin"]
        assert (spin.calls, spin.calls_held) == (400, 200)
        """,
        str(PY_SPY),
    )
    if child.stdout.startswith("refused"):
        pytest.skip(child.stdout.strip())
