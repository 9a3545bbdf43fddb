"""Machine code that no linker knows calls PyEval_SaveThread by its address, as numba's does."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest

import torchgil
from tests.support.compiling import compile_extension, needs_compiler
from tests.tracing.loads import busy_in_python, threads

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* `times` windows of `seconds` each, past every table of addresses. */
void windows(int times, double seconds) {
  void* (*save)(void) = dlsym(RTLD_DEFAULT, "PyEval_SaveThread");
  void (*restore)(void*) = dlsym(RTLD_DEFAULT, "PyEval_RestoreThread");
  for (int i = 0; i < times; ++i) {
    void* state = save();
    for (double end = now() + seconds; now() < end;) {
    }
    restore(state);
  }
}

void hold(double seconds) {
  for (double end = now() + seconds; now() < end;) {
  }
}
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> ctypes.PyDLL:
    source = tmp_path_factory.mktemp("by_address") / "by_address.c"
    source.write_text(SOURCE)
    library = ctypes.PyDLL(str(compile_extension(source, suffix=".so")))
    library.windows.argtypes = [ctypes.c_int, ctypes.c_double]
    library.hold.argtypes = [ctypes.c_double]
    library.windows.restype = library.hold.restype = None
    return library


pytestmark = needs_compiler


def test_alone_each_window_is_one(code: ctypes.PyDLL) -> None:
    found = torchgil.audit(code.windows, 20, 0.001)
    assert (found.verdict, found.releases) == ("releases", 20), found
    assert found.preempted_s == 0


def test_a_hold_by_the_same_code_stays_a_hold(code: ctypes.PyDLL) -> None:
    assert torchgil.audit(code.hold, 0.02).verdict == "holds"


def test_beside_a_busy_thread_a_window_is_no_forced_switch(code: ctypes.PyDLL) -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            busy_in_python(0.001)

    with threads(2, busy, "busy"):
        try:
            found = torchgil.audit(code.windows, 20, 0.005)
        finally:
            stop.set()
    assert found.releases == 20, found
    assert found.free_s >= 0.1, found
    # And what was switched out is told from a window there, too.
    busy_ones = [thread for thread in found.report.threads if thread.name.startswith("busy")]
    assert all(thread.preempted_s > 0.01 for thread in busy_ones), found.report


def test_a_window_that_is_open_when_the_trace_ends_is_free(code: ctypes.PyDLL) -> None:
    started = threading.Event()

    def run() -> None:
        started.set()
        code.windows(1, 0.5)

    with torchgil.trace() as t:
        thread = threading.Thread(target=run, name="by address")
        thread.start()
        started.wait()
        time.sleep(0.1)
    thread.join()
    (seen,) = [x for x in t.report().threads if x.name == "by address"]
    assert seen.free_s > 0.08, t.report()
    assert seen.preempted_s == 0, t.report()


@pytest.mark.peer
def test_numba_without_the_gil_releases() -> None:
    numba = pytest.importorskip("numba", reason="pip install numba")

    @numba.njit(nogil=True)
    def count(n: int) -> float:
        total = 0.0
        for i in range(n):
            total += (i * 0.5) % 3.0
        return total

    @numba.njit
    def held(n: int) -> float:
        total = 0.0
        for i in range(n):
            total += (i * 0.5) % 3.0
        return total

    count(10)
    held(10)
    assert torchgil.audit(count, 30_000_000).verdict == "releases"
    assert torchgil.audit(held, 30_000_000).verdict == "holds"
