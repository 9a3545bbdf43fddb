"""One processor, small stacks, many threads, little memory, a full disk, another interpreter."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from ..conftest import run_in_child

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for its limits")


@linux
def test_sixty_four_threads_with_small_stacks_on_one_processor():
    child = run_in_child(
        """
        import os, threading
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import torch, torchgil
        from tests.support.unchanged import unchanged
        x = torch.ones(64, 64)
        policies = [torchgil.released, torchgil.held, torchgil.adaptive, torch.ops.torchgil]
        start, sums = threading.Barrier(64), []
        def run(i):
            start.wait()
            ops = policies[i % 4]
            for _ in range(5):
                y = ops.rms_norm(ops.matmul(ops.add(x, x), x).requires_grad_(), x[0])
                y.sum().backward()
                with torchgil.gil_priority():
                    ops.sleep(0.0002)
            sums.append(float(y.detach().sum()))
        if torch.cuda.is_available():  # its driver comes with the first backward
            torch.ones(1, requires_grad=True).sum().backward()
        threading.stack_size(512 * 1024)
        with unchanged():
            with torchgil.trace() as t, torchgil.Watchdog(threshold=5, on_hold=print):
                threads = [threading.Thread(target=run, args=(i,)) for i in range(64)]
                [thread.start() for thread in threads]
                [thread.join() for thread in threads]
            with torchgil.ThreadPool(1) as pool, torchgil.Batcher(lambda x: x + 1) as batcher:
                assert pool.submit(torchgil.released.add, x, x).result(60).sum() == 2 * 64 * 64
                assert batcher.submit(x[:8]).result(60).sum() == 2 * 8 * 64
        assert len(sums) == 64 and len(set(sums)) == 1, sums
        calls = {op.name: op.calls for op in t.report().ops}
        assert calls["torchgil::sleep"] == 64 * 5, calls
        for thread in t.report().threads:
            parts = thread.free_s + thread.held_s + thread.wait_s + thread.preempted_s
            assert abs(parts - thread.wall_s) < 1e-6, thread
        """
    )
    assert (child.stdout, child.stderr) == ("", "")


@linux
def test_without_memory_there_is_an_error_and_no_end_of_the_process():
    child = run_in_child(
        """
        import resource, threading, torch, torchgil
        from torchgil.forward import _nogil as _  # imported while there is memory
        x = torch.ones(1 << 20)
        pool = torchgil.ThreadPool(2, intra_op_threads=1)
        pool.submit(int).result()
        mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 20), resource.RLIM_INFINITY))
        wide = x.expand(64, 1 << 20)
        for call in (
            lambda: torchgil.released.add(wide, wide),
            lambda: torchgil.held.add(wide, wide),
            lambda: torchgil.adaptive.rms_norm(wide, x),
            lambda: torch.ops.torchgil.add(wide, wide),
            lambda: pool.submit(torchgil.released.add, wide, wide).result(60),
            lambda: torchgil.trace(max_events=1 << 28).__enter__(),
        ):
            try:
                call()
            except (RuntimeError, MemoryError, OSError) as error:
                assert "memory" in str(error) or "bad_alloc" in str(error) or "unavailable" in str(error)
            else:
                print("no error")
        # What starts a thread is not asked: one that ends for want of memory before it has said that it is
        # there leaves threading.Thread.start() waiting for ever, which is CPython's.
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert torchgil.released.add(x, x)[0] == 2
        with torchgil.trace() as t, torchgil.Watchdog(threshold=1, on_hold=print):
            torchgil.released.spin(0.001)
        assert [op.calls for op in t.report().ops] == [1], t.report()
        pool.shutdown()
        """
    )
    assert (child.stdout, child.stderr) == ("", "")


@linux
def test_a_report_that_finds_the_disk_full_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs torchgil[cli]")
    kinds = {
        "save_json": "report.json",
        "save_chrome_trace": "timeline.json",
        "plot": "report.png",
        "save_html": "report.html",
    }
    for name in kinds.values():
        (tmp_path / name).write_text("the one before")
    run_in_child(
        """
        import json, os, resource, sys, torch, torchgil
        with torchgil.trace() as t:
            for _ in range(50):
                torchgil.released.add(torch.ones(2), torch.ones(2))
        report = t.report()
        def full(size):  # as a full disk: EFBIG
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        os.chdir(os.environ["TMPDIR"])
        report.plot("warm.png")  # matplotlib has written what it keeps
        for kind, name in json.loads(sys.argv[1]).items():
            full(512)
            try:
                getattr(report, kind)(os.path.join(sys.argv[2], name))
            except OSError as error:
                full(resource.RLIM_INFINITY)
            else:
                raise AssertionError("no error")
        os.remove("warm.png")
        """,
        json.dumps(kinds),
        str(tmp_path),
    )
    assert sorted(os.listdir(tmp_path)) == sorted(kinds.values())  # no half of another beside them
    assert {path.read_text() for path in tmp_path.iterdir()} == {"the one before"}


@linux
@pytest.mark.parametrize("before", ["", "import torchgil._gil"], ids=["first there", "also in the main one"])
def test_another_interpreter_is_refused(before):
    child = run_in_child(
        """
        import sys
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        exec(sys.argv[1])
        made = interpreters.create()
        code = '''
        import torchgil  # what needs no extension works there
        print("imported", flush=True)
        try:
            import torchgil._gil
        except ImportError as error:
            print(error, flush=True)
        '''
        import textwrap
        print(interpreters.run_string(made, textwrap.dedent(code)))
        """,
        before,
        fresh=True,
    )
    refusal = r"module (torchgil\.)?_gil does not support loading in subinterpreters"
    assert re.fullmatch(rf"imported\n{refusal}\nNone\n", child.stdout), child


NO_DESCRIPTOR = """
    import contextlib, ctypes, resource, struct, time, torch, torchgil
    from torchgil._priority import priority_unavailable
    from torchgil.tracing import trace  # so that no import wants one
    from torchgil.watching import Watchdog

    @contextlib.contextmanager
    def no_descriptor():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def redirected():
        # Words of the interpreter's data that are addresses in our code.
        with open("/proc/self/maps") as file:
            lines = [line.split() for line in file]
        ranges = [(*(int(x, 16) for x in at.split("-")), mode, rest[-1]) for at, mode, *rest in lines]
        interpreter = next(
            name for begin, end, _, name in ranges
            if begin <= ctypes.cast(ctypes.pythonapi.Py_Initialize, ctypes.c_void_p).value < end
        )
        mine = torchgil._gil.__file__
        ours = [(b, e) for b, e, mode, name in ranges if "x" in mode and name.endswith(mine)]
        words = []
        for begin, end, mode, name in ranges:
            if name == interpreter and mode.startswith("r") and "x" not in mode:
                words += struct.unpack(f"{(end - begin) // 8}Q", ctypes.string_at(begin, end - begin))
        return sum(b <= word < e for word in words for b, e in ours)
"""


@linux
def test_calls_are_put_back_without_a_free_descriptor():
    run_in_child(
        NO_DESCRIPTOR
        + """
    assert redirected() == 0
    with contextlib.ExitStack() as stack:
        with trace():
            assert redirected() > 0
            stack.enter_context(no_descriptor())
    assert redirected() == 0
    with trace() as t:
        torchgil.released.spin(0.001)
    assert t.report().threads[0].releases == 1
    """
    )


@linux
def test_what_found_no_free_descriptor_works_when_there_is_one_again():
    run_in_child(
        NO_DESCRIPTOR
        + """
    import warnings
    with no_descriptor(), warnings.catch_warnings(record=True) as warned:
        with trace() as t:
            torchgil.released.spin(0.001)
        with torchgil.gil_priority():
            pass
        with Watchdog(on_hold=print):
            pass
    assert "no file descriptor was free" in str(t.report().notes), t.report().notes
    assert ["no file descriptor was free" in str(each.message) for each in warned] == [True], warned
    assert redirected() == 0
    with trace() as t:
        time.sleep(0.001)
    assert t.report().threads[0].releases == 1 and not t.report().notes, t.report().notes
    assert priority_unavailable() is None
    with torchgil.gil_priority():
        assert redirected() > 0
    """
    )
