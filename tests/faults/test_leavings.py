"""The controls of what checks every child, and of `unchanged`: what is left behind is found."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from tests.support.unchanged import unchanged

from ..conftest import run_in_child

ZOMBIE = """
    import os
    if not (pid := os.fork()):
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays to be waited for
"""
RUNNING = "import subprocess; subprocess.Popen(['sleep', '60'])"
FILE = "import tempfile; tempfile.NamedTemporaryFile(delete=False, prefix='forgotten').close()"


@pytest.mark.parametrize(
    ("code", "fresh", "left"),
    [
        (ZOMBIE, False, "a zombie"),
        (RUNNING, False, "a running process"),
        (FILE, False, "a temporary file forgotten"),
        (FILE, True, "a temporary file forgotten"),
    ],
)
def test_what_a_child_leaves_is_found(code, fresh, left):
    with pytest.raises(pytest.fail.Exception, match=f"left {left}"):
        run_in_child(code, fresh=fresh)


def test_a_child_that_waits_and_cleans_up_leaves_nothing():
    code = "import subprocess, tempfile; subprocess.run(['true']); tempfile.TemporaryFile().write(b'1')"
    assert run_in_child(code).left == ()


@pytest.mark.parametrize("what", ["threads", "files", "switch interval", "memory"])
def test_what_is_not_as_before_is_found(what):
    child = run_in_child(
        """
        import sys, threading
        from tests.support.unchanged import unchanged
        latch = threading.Event()
        try:
            with unchanged(grown_mib=20, within_s=0.1):
                if sys.argv[1] == "threads":
                    threading.Thread(target=latch.wait).start()
                elif sys.argv[1] == "files":
                    kept = open("/dev/null")
                elif sys.argv[1] == "memory":
                    kept = b"1" * (50 << 20)
                else:
                    sys.setswitchinterval(0.001)
        except AssertionError as error:
            print(error)
        latch.set()
        """,
        what,
    )
    assert ("MiB more than before" if what == "memory" else f"'{what}': ") in child.stdout


def test_a_thread_that_ends_soon_is_waited_for():
    with unchanged():
        threading.Timer(0.1, int).start()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="on_exit() is glibc's")
def test_what_a_child_registers_for_its_end_runs_without_a_whole_end_too():
    code = "import ctypes; libc = ctypes.CDLL(None); libc.on_exit(libc.abort, None)"
    assert run_in_child(code, check=False).exit_code == -signal.SIGABRT
