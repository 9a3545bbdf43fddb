"""Priority in an interpreter that has libpython within it, and calls its own entry points unseen."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.compiling import needs_compiler
from tests.support.static_python import PYTHON

pytestmark = [needs_compiler, pytest.mark.slow]

# A thread that is busy in Python until `over`; the interpreter's interval is a hundred seconds.
BUSY = """
import os, queue, socket, sys, threading, time
import torchgil
from torchgil._gil_half import C
sys.setswitchinterval({interval})
started, over, counted = threading.Event(), False, 0
def busy():
    global counted
    started.set()
    while not over:
        counted += 1
thread = threading.Thread(target=busy, daemon=True)
"""

RELEASES = {
    "sleep": "step = lambda: time.sleep(0.001)",
    "pipe": "r, w = os.pipe()\nstep = lambda: (os.write(w, b'x'), os.read(r, 1))",
    "socket": "a, b = socket.socketpair()\nstep = lambda: (a.send(b'x'), b.recv(1))",
    "lock": "lock = threading.Lock(); lock.acquire()\nstep = lambda: lock.acquire(timeout=0.001)",
}


def run(static_environment: dict[str, str], code: str) -> str:
    done = subprocess.run(
        [PYTHON, "-c", code],
        cwd=static_environment["PYTHONPATH"],
        env=static_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_own_releases_are_not_seen_and_it_says_so(static_environment):
    code = "from torchgil import doctor; print(doctor.render(doctor.examine()))"
    assert "by their waits for the GIL alone" in run(static_environment, code)


@pytest.mark.parametrize("release", RELEASES)
def test_a_thread_comes_back_from_them_while_another_is_busy(static_environment, release):
    """The interpreter alone would let it wait for its interval, which is longer than this test."""
    code = f"""{BUSY.format(interval=100)}
{RELEASES[release]}
with torchgil.gil_priority():
    thread.start()
    started.wait()
    for _ in range(50):
        step()
    print(C.priority_answers() > 0)
os._exit(0) if sys.stdout.flush() is None else None
"""
    assert run(static_environment, code) == "True\n"


def test_the_control_without_priority_it_comes_back_after_the_interval(static_environment):
    code = f"""{BUSY.format(interval=1)}
with torchgil.gil_priority():
    pass
thread.start()
started.wait()
began = counted
while counted == began:  # it may come back before the other one has begun
    time.sleep(0.001)
print(C.priority_answers(), counted > began)
os._exit(0) if sys.stdout.flush() is None else None
"""
    assert run(static_environment, code) == "0 True\n"


def test_two_busy_threads_do_not_throw_each_other_out_at_once(static_environment):
    """Each has a turn of a millisecond, also where a forced switch cannot be told from a release."""
    code = f"""{BUSY.format(interval=0.005)}
with torchgil.gil_priority():
    thread.start()
    started.wait()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    over = True
    thread.join()
print(C.priority_answers(), C.priority_turns_of_others())
"""
    answers, turns = map(int, run(static_environment, code).split())
    assert 5 < answers < 0.3 / 0.0008, (answers, turns)
    assert 5 < turns < 0.3 / 0.0008, (answers, turns)
