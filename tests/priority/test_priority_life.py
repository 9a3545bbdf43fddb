"""Priority with the trace, the watchdog, fork, exit and signals, amid running threads."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import run_in_child
from tests.priority.test_priority import BUSY, interpreter_is_static

BESIDE = "beside(lambda: released.wait(started, 60), gil_priority=True)"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(f"with torchgil.trace():\n    {BESIDE}", id="first entry inside a trace"),
        pytest.param(f"with torchgil.trace(): pass\n{BESIDE}", id="after a trace"),
        pytest.param(
            f"with torchgil.gil_priority(): pass\nwith torchgil.trace():\n    {BESIDE}", id="a trace after it"
        ),
        pytest.param(
            f"""
with torchgil.gil_priority():
    with torchgil.trace():
        with torchgil.gil_priority(): pass
    torch.ones(2) + 1
{BESIDE}""",
            id="a trace within a block",
        ),
    ],
)
def test_beside_a_trace_in_any_order(code):
    assert run_in_child(f"{BUSY}\n{code}", "with").stdout.split() == ["main", "busy"]


COUNTS = """
with torchgil.trace() as t:
    for _ in range(100):
        released.sleep(0)
        torchgil.held.sleep(0)
assert next(th for th in t.report().threads if th.ident == threading.get_ident()).releases == 100
assert not t.report().notes, t.report().notes
"""


@pytest.mark.parametrize("before", ["", "with torchgil.gil_priority(): pass"])
def test_a_trace_counts_the_same_with_priority(before):
    run_in_child(f"""{BUSY}
{before}
with torchgil.gil_priority():
    {COUNTS.replace(chr(10), chr(10) + "    ")}
{COUNTS}""")


def test_the_trace_shows_the_holder_forced_to_switch_because_priority_asked():
    """And without priority, it shows that it was not: with the same interval, a hundred seconds."""
    code = f"""{BUSY}
with torchgil.trace() as t:
    beside(lambda: released.wait(started, 60), gil_priority=sys.argv[1] == "with")
print(any(th.preempted_s > 0 for th in t.report().threads if th.ident != threading.get_ident()))
"""
    assert run_in_child(code, "with").stdout.splitlines() == ["main busy", "True"]
    if not interpreter_is_static():  # there a window that nobody waited in may look like it
        assert run_in_child(code, "without").stdout.splitlines() == ["busy main", "False"]


def test_a_thousand_traces_start_and_stop_amid_threads_with_priority():
    run_in_child(
        """
import threading, torch, torchgil
torch.set_num_threads(1)
stop = False
counts = [0] * 4
def run(i):
    x = torch.ones(8)
    while not stop:
        with torchgil.gil_priority():
            for _ in range(20):
                x + x
                torchgil.released.sleep(0)
        counts[i] += 1
threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
from torchgil._gil_half import C
for _ in range(1000):
    C.trace_start(20_000, True, True)
    C.trace_stop()
stop = True
for thread in threads: thread.join()
assert all(counts), counts
assert not C.has_priority()
""",
        timeout=240,
    )


def test_the_watchdog_still_names_the_line_and_nothing_else():
    code = """
import threading, torchgil
from torchgil import held, released
with torchgil.gil_priority(): released.sleep(0)  # the first block installs, and holds meanwhile
with torchgil.Watchdog(threshold=0.1) as dog, torchgil.gil_priority():
    thread = threading.Thread(target=lambda: held.spin(0.6))  # this line
    thread.start()
    while thread.is_alive():
        released.sleep(0.001)
    for _ in range(300):
        released.sleep(0.001)
print([(hold.function, hold.lineno) for hold in dog.holds])
"""
    assert run_in_child(code).stdout.strip() == "[('<lambda>', 6)]"


def test_a_block_that_nobody_can_leave_any_more_ends():
    run_in_child(
        """
import torchgil
from torchgil._gil_half import C
block = torchgil.gil_priority()
block.__enter__()
block.__enter__()
assert C.has_priority()
del block
assert not C.has_priority()
"""
    )


def test_a_fork_keeps_the_forking_threads_priority_and_no_other_threads_place():
    code = f"""{BUSY}
import os
stop = False
def wait_often():
    with torchgil.gil_priority():
        while not stop:
            released.sleep(0)
others = [threading.Thread(target=wait_often) for _ in range(3)]
for other in others: other.start()
with torchgil.gil_priority():
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            from torchgil._gil_half import C
            ok = C.has_priority()
            for _ in range(50):
                released.sleep(0)
            os._exit(0 if ok else 7)
        assert os.waitpid(pid, 0)[1] == 0
stop = True
for other in others: other.join()
# join() returns before the system's thread has ended, and one that ends amid a fork may hold a lock that is
# nobody's in the child: asan's allocator has such.
while any(os.path.exists(f"/proc/self/task/{{other.native_id}}") for other in others): pass
pid = os.fork()
if pid == 0:
    beside(lambda: released.wait(started, 60), gil_priority=True)
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    child = run_in_child(f"import warnings; warnings.simplefilter('ignore')\n{code}", "with")
    assert child.stdout.split() == ["main", "busy"]


def test_the_process_ends_amid_daemon_threads_with_priority():
    for _ in range(3):
        child = run_in_child(
            """
import threading, time, torchgil
def run():
    with torchgil.gil_priority():
        while True:
            torchgil.released.sleep(0.0001)
for _ in range(4):
    threading.Thread(target=run, daemon=True).start()
time.sleep(0.3)
""",
            whole_end=True,
        )
        assert child.stderr == ""


def test_ctrl_c_while_it_waits_for_the_gil():
    code = """
import signal, sys, threading, torchgil
signal.signal(signal.SIGINT, signal.default_int_handler)
started = torchgil.Latch()
def hold():
    started.open()
    torchgil.held.spin(2.0)  # gives way to nobody
thread = threading.Thread(target=hold)
from torchgil._gil_half import C
try:
    with torchgil.gil_priority():
        thread.start()
        print("waiting", flush=True)
        torchgil.released.wait(started, 60)
        while True:
            torchgil.released.sleep(0.01)
except KeyboardInterrupt:
    thread.join()
    print("interrupted", C.has_priority(), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "waiting"
    time.sleep(0.5)  # the other one holds the GIL by now
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.strip() == "interrupted False"
    assert process.returncode == 0
