"""What a trace does to its process: what it redirects, what it puts back, what forks and exits meet."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from torchgil._gil_half import C

# --- nothing is left behind -----------------------------------------------------------------------


def _protections():
    return [
        (line.split()[0], line.split()[1])
        for line in Path("/proc/self/maps").read_text().splitlines()
        if ".so" in line or "python" in line
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_page_protections_are_put_back_as_they_were():
    with torchgil.trace():
        pass
    before = _protections()
    with torchgil.trace():
        pass
    assert _protections() == before


def test_every_slot_is_put_back_and_redirected_again():
    first = C.trace_start(1000, True, True)
    C.trace_stop()
    second = C.trace_start(1000, True, True)
    C.trace_stop()
    assert first["slots"] == second["slots"] > 10
    assert first["entry_points"]


def test_nothing_is_recorded_and_no_callback_is_there_while_no_trace_runs():
    with torchgil.trace():
        assert C.trace_running()
    assert not C.trace_running()
    assert not torch._C._autograd._profiler_enabled()
    torchgil.released.spin(0)
    with torchgil.trace() as t:
        pass
    assert t.report().ops == ()


def test_thread_start_is_the_librarys_own_again():
    original = threading.Thread.start
    with torchgil.trace():
        assert threading.Thread.start is not original
    assert threading.Thread.start is original


# --- objects loaded during a trace, forks ---------------------------------------------------------


def test_an_extension_module_imported_during_a_trace_is_covered():
    # A second copy of a module is a new object to the loader. Without the lock witness,
    # only its own redirected calls can show its windows.
    run_in_child("""
        import importlib.machinery, importlib.util, shutil, sys, tempfile, torchgil, _bz2
        if getattr(_bz2, "__file__", None) is None:
            sys.exit(0)  # built into this python
        with tempfile.TemporaryDirectory() as folder:
            path = shutil.copy(_bz2.__file__, folder)
            with torchgil.trace(forced_switches=False) as t:
                loader = importlib.machinery.ExtensionFileLoader("_bz2", path)
                module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_bz2", loader))
                loader.exec_module(module)
                assert module is not _bz2
                compressor = module.BZ2Compressor()
                compressor.compress(bytes(range(256)) * 4000)
                compressor.flush()
        print(t.report())
        assert t.report().threads[0].free_s > 0.02
        assert "unseen" not in str(t.report().notes).replace("stay unseen", ""), t.report().notes
    """)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_inside_a_trace_leaves_the_child_without_it_and_the_parent_with():
    run_in_child("""
        import os, torch, torchgil, warnings
        warnings.simplefilter("ignore")
        from torchgil._gil_half import C
        a = torch.ones(2)
        spin = torchgil.released.spin
        with torchgil.trace() as t:
            spin(0)
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    assert not C.trace_running()
                    spin(0)
                    torch.add(a, a)
                    t.__exit__(None, None, None)
                    try:
                        t.report()
                    except RuntimeError as error:
                        assert "forked" in str(error), error
                    else:
                        raise AssertionError("a report in the child")
                    with torchgil.trace() as own:
                        spin(0)
                    assert own.report().threads[0].releases == 1, own.report()
                    status = 0
                finally:
                    os._exit(status)
            _, status = os.waitpid(pid, 0)
            spin(0)
        assert os.waitstatus_to_exitcode(status) == 0
        (op,) = [o for o in t.report().ops if o.name == "torchgil::spin"]
        assert op.calls == 2, t.report()
    """)


def test_a_subprocess_inside_a_trace_runs_and_waits_free():
    with torchgil.trace() as t:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"], check=True)
    report = t.report()
    me = next(thread for thread in report.threads if thread.native_id == threading.get_native_id())
    assert me.free_s > 0.5 * report.wall_s


def test_the_interpreter_ends_well_with_a_trace_open_and_threads_inside():
    child = run_in_child(
        """
        import threading, time, torchgil
        t = torchgil.trace()
        t.__enter__()
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        def busy():
            while True:
                time.sleep(0)
        threading.Thread(target=busy, daemon=True).start()
        time.sleep(0.1)
        print("end")
        """,
        whole_end=True,
    )
    assert child.stdout == "end\n"


def test_the_symbols_redirected_are_those_of_this_interpreter():
    for name in ("PyEval_SaveThread", "PyEval_RestoreThread", "PyGILState_Ensure", "PyGILState_Release"):
        assert hasattr(ctypes.pythonapi, name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF objects")
def test_a_fork_after_an_unloading_inside_the_trace_harms_neither(tmp_path):
    run_in_child(
        """
        import ctypes, _bz2, _ctypes, os, shutil, sys, torchgil, warnings
        warnings.simplefilter("ignore")
        if not getattr(_bz2, "__file__", None):
            sys.exit()  # this python has no such extension module to copy
        copy = shutil.copy(_bz2.__file__, sys.argv[1])
        library = ctypes.PyDLL(copy)
        with torchgil.trace():
            _ctypes.dlclose(library._handle)
            assert copy not in open("/proc/self/maps").read()
            child = os.fork()
            if not child:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """,
        str(tmp_path / "copy.so"),
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF objects")
@pytest.mark.parametrize("lock", [True, False])
def test_what_was_loaded_inside_the_trace_and_stayed_unseen_is_named(tmp_path, lock, monkeypatch):
    bz2 = pytest.importorskip("_bz2", reason="this python has no _bz2")
    if not getattr(bz2, "__file__", None):
        pytest.skip("this python has no extension module of _bz2 to copy")
    copy = str(shutil.copy(bz2.__file__, tmp_path / f"copy_{lock}.so"))
    start = C.trace_start
    monkeypatch.setattr(C, "trace_start", lambda events, gil, _, *more: start(events, gil, lock, *more))
    with torchgil.trace() as before:
        pass
    with torchgil.trace() as trace:
        ctypes.PyDLL(copy)
    assert not any("loaded during the trace" in note for note in before.report().notes)
    (note,) = [note for note in trace.report().notes if "loaded during the trace" in note]
    assert copy in note
    assert ("count as preempted" if lock else "stayed unseen") in note


def test_leaving_a_trace_twice_leaves_another_alone():
    first = torchgil.trace()
    with first:
        pass
    with torchgil.trace() as second:
        first.__exit__(None, None, None)
        assert C.trace_running()
    assert second.report().wall_s > 0


def test_a_forked_child_keeps_no_wrapper_of_the_trace():
    run_in_child(
        """
        import os, threading, torchgil, warnings
        warnings.simplefilter("ignore")
        original = threading.Thread.start
        with torchgil.trace():
            assert threading.Thread.start is not original
            child = os.fork()
            if not child:
                os._exit(7 if threading.Thread.start is original else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert threading.Thread.start is original
        """
    )


def test_a_forked_childs_threads_have_their_names():
    """As a server's workers that were forked before they served."""
    child = run_in_child(
        """
        import os, threading, torchgil, warnings
        warnings.simplefilter("ignore")

        def traced():
            threading.current_thread().name = "before the fork"
            if child := os.fork():
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                return
            with torchgil.trace() as t:
                worker = threading.Thread(target=torchgil.released.spin, args=(0.01,), name="worker")
                worker.start()
                worker.join()
            names = {thread.name for thread in t.report().threads}
            print(names == {"worker", threading.main_thread().name}, flush=True)
            os._exit(0)

        traced()
        other = threading.Thread(target=traced)
        other.start()
        other.join()
        """
    )
    assert child.stdout == "True\n" * 2
