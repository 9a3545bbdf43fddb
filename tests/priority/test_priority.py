"""Who gets the GIL first, told by the order of events: the switch interval is longer than any test."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest

import torchgil
from tests.conftest import run_in_child
from torchgil._gil_half import C
from torchgil._priority import gil_priority

# A thread that is busy in Python for a while. Nothing makes it give way but a request for the GIL: the
# interval after which the interpreter would make one by itself is a hundred seconds.
BUSY = """
import sys, threading
import torch, torchgil
from torchgil import gil_priority, released  # now: an import beside a busy thread waits for it to end
torch.set_num_threads(1)
sys.setswitchinterval(100)
order = []
started = torchgil.Latch()
# With priority it is made to give way, long before its end; without, it comes to its end.
count = 1_000_000_000 if sys.argv[1:] == ["with"] else 10_000_000

def busy():
    started.open()
    for _ in range(count):
        if order:
            break
    order.append("busy")

def beside(window, gil_priority, threads=1):
    "Runs window() in this thread, so that it ends while the others are busy."
    gate = threading.Event()
    others = [threading.Thread(target=lambda: (gate.wait(), busy())) for _ in range(threads)]
    for other in others:
        other.start()
    gate.set()
    if gil_priority:
        with torchgil.gil_priority():
            window()
            order.append("main")
    else:
        window()
        order.append("main")
    for other in others:
        other.join()
    print(*order)
"""


def interpreter_is_static():
    """Whether python calls its own entry points directly, and nobody sees it: Debian's and Ubuntu's does."""
    return "libpython" not in Path("/proc/self/maps").read_text()


# Calls that release the GIL; each is made until the other thread is busy, and once more.
CALLS = {
    "a window of ours": "call = lambda: released.sleep(0.001)",
    "an op": """
a = torch.ones(200, 200)
call = lambda: torch.mm(a, a)""",
    "torch.ops, through PyEval_AcquireThread": "call = lambda: torch.ops.torchgil.sleep(0.001)",
    "backward": """
a = torch.ones(200, 200, requires_grad=True)
call = lambda: (a @ a).sum().backward()""",
    "the interpreter's own": """
import time
call = lambda: time.sleep(0.001)""",
    "a callback, through PyGILState_Ensure, of an extension loaded within the block": """
def call():
    import sqlite3
    base = sqlite3.connect(":memory:")
    base.create_function("f", 1, lambda x: x)
    base.execute("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 30000) "
                 "SELECT f(sum(x)) FROM c").fetchone()
assert "_sqlite3" not in sys.modules""",
}


def window(call):
    return f"""{BUSY}
{call}
def window():
    while not started.is_open:
        call()
    call()
"""


@pytest.mark.parametrize("name", CALLS)
def test_with_priority_the_busy_thread_gives_way_and_without_it_it_does_not(name):
    call = CALLS[name]
    if interpreter_is_static():
        if name == "the interpreter's own":
            pytest.skip("a static python calls its entry points directly, and nobody sees it")
        # Its own releases go without priority, those of an import too.
        call = call.replace('assert "_sqlite3" not in sys.modules', "import sqlite3")
    code = f"{window(call)}\nbeside(window, gil_priority=sys.argv[1] == 'with')"
    assert run_in_child(code, "with").stdout.split() == ["main", "busy"]
    assert run_in_child(code, "without").stdout.split() == ["busy", "main"]


def test_beside_two_busy_threads_the_one_that_asked_is_woken():
    """The other one waits for longer: it would get what this one asked for."""
    code = f"""{BUSY}
def window():
    for _ in range(50):
        released.sleep(0.001)
beside(window, gil_priority=True, threads=2)"""
    assert run_in_child(code, "with").stdout.split() == ["main", "busy", "busy"]


def test_no_request_is_lost():
    """CPython 3.12 loses one that comes just as the holder was given the GIL: at some of these moments."""
    code = f"""{BUSY}
def window():
    for i in range(4000):
        released.sleep(i % 100 * 1e-6)
beside(window, gil_priority=True)"""
    assert run_in_child(code, "with").stdout.split() == ["main", "busy"]


def test_one_request_per_window_however_many_threads_are_busy():
    """The next in line, woken beside the one that asked, would often be quicker, and have to be asked."""
    code = f"""{BUSY}
from torchgil._gil_half import C
def window():
    for _ in range(20):
        released.sleep(0.001)  # all eight come to wait
    before = C.priority_answers()
    for _ in range(300):
        released.sleep(0.0002)
    print(C.priority_answers() - before)
beside(window, gil_priority=True, threads=8)"""
    asked, *order = run_in_child(code, "with").stdout.split()
    assert order == ["main"] + 8 * ["busy"]
    assert 200 < int(asked) < 400


def test_a_thread_that_was_forced_to_switch_by_another_with_priority_waits_for_its_interval():
    code = f"""{BUSY}
torch.ones(1)
def other():
    with torchgil.gil_priority():
        started.open()
        released.sleep(0.2)  # ends while main is busy, and makes it give way
        for _ in range(10_000_000):
            pass
    order.append("other")
thread = threading.Thread(target=other)
thread.start()
released.wait(started, 60)
with torchgil.gil_priority():
    while not order:  # no release of its own
        pass
    order.append("main")
thread.join()
print(*order)"""
    assert run_in_child(code).stdout.split() == ["other", "main"]


def test_once_its_block_has_ended_nobody_asks_a_thread_before_the_interval():
    """It got the GIL with priority, and would not get it back so: it waits like any other then."""
    code = f"""{BUSY}
other = threading.Thread(target=busy)
count = 1_000_000_000
with torchgil.gil_priority():
    other.start()
    released.sleep(0.01)
for _ in range(2_000_000):
    pass
order.append("main")
other.join()
print(*order)"""
    assert run_in_child(code).stdout.split() == ["main", "busy"]


NOGIL = """
class Product(torch.nn.Module):
    def forward(self, x):
        return x @ x
x = torch.full((200, 200), 1e-4)
forward = torchgil.nogil(Product().eval(), (x,), gil_priority=sys.argv[1] == "with")
kept = []  # freeing a result is a release as well, and none of nogil's
call = lambda: kept.append(forward(x))
"""


def test_nogil_asks_at_once_unless_told_not_to():
    code = f"{window(NOGIL)}\nbeside(window, gil_priority=False)"
    assert run_in_child(code, "with").stdout.split() == ["main", "busy"]
    assert run_in_child(code, "without").stdout.split() == ["busy", "main"]


def test_a_pickled_forward_keeps_its_priority():
    import pickle

    import torch

    for asked in (True, False):
        forward = torchgil.nogil(torch.nn.ReLU().eval(), (torch.ones(2),), gil_priority=asked)
        assert forward._graph.gil_priority is asked
        assert pickle.loads(pickle.dumps(forward))._graph.gil_priority is asked


def test_blocks_nest_and_end_with_exceptions():
    assert not C.has_priority()
    with gil_priority():
        with pytest.raises(KeyError), gil_priority():
            raise KeyError
        assert C.has_priority()
    assert not C.has_priority()


def test_one_object_may_be_entered_twice_and_by_two_threads():
    priority = gil_priority()
    seen = []

    def other():
        seen.append(C.has_priority())
        with priority:
            seen.append(C.has_priority())
        seen.append(C.has_priority())

    with priority, priority:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert C.has_priority()
    assert not C.has_priority()
    assert seen == [False, True, False]


def test_a_decorated_function_has_it_while_it_runs():
    @gil_priority()
    def function(a, *, b):
        """Its text."""
        return a, b, C.has_priority()

    assert function(1, b=2) == (1, 2, True)
    assert function.__doc__ == "Its text."
    assert not C.has_priority()


def test_a_decorated_generator_has_it_in_each_step_alone():
    @gil_priority()
    def generator():
        try:
            got = yield C.has_priority()
            try:
                yield got, C.has_priority()
            except KeyError:
                yield "caught", C.has_priority()
            return "end"
        finally:
            ended.append(C.has_priority())

    ended = []
    steps = generator()
    assert next(steps) is True
    assert not C.has_priority()
    assert steps.send("sent") == ("sent", True)
    assert steps.throw(KeyError) == ("caught", True)
    with pytest.raises(StopIteration, match="end"):
        next(steps)
    steps = generator()
    next(steps)
    steps.close()
    assert ended == [True, True]
    assert not C.has_priority()


def test_a_decorated_coroutine_gives_it_up_while_another_task_runs():
    @gil_priority()
    async def task(name):
        for _ in range(3):
            seen.append((name, C.has_priority()))
            await asyncio.sleep(0)
        return name

    async def plain():
        for _ in range(6):
            seen.append(("plain", C.has_priority()))
            await asyncio.sleep(0)

    async def main():
        return await asyncio.gather(task("a"), plain(), task("b"))

    seen = []
    assert asyncio.run(main()) == ["a", None, "b"]
    assert set(seen) == {("a", True), ("b", True), ("plain", False)}
    assert not C.has_priority()


def test_what_cannot_be_decorated_is_refused():
    async def agen():
        yield

    with pytest.raises(TypeError, match="agen is an async generator function"):
        gil_priority()(agen)
    with pytest.raises(TypeError, match="a function is expected, got int"):
        gil_priority()(3)


def test_a_generators_block_that_ends_on_another_thread_ends_where_it_began():
    def generator():
        with gil_priority():
            yield

    steps = generator()
    next(steps)
    assert C.has_priority()
    thread = threading.Thread(target=steps.close)
    thread.start()
    thread.join()
    assert not C.has_priority()


def test_threads_that_end_inside_a_block_leave_nothing():
    kept = []

    def run():
        block = gil_priority()
        block.__enter__()
        kept.append(block)

    for _ in range(20):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    for block in kept:
        block.__exit__(None, None, None)  # the thread is gone
    del kept[:]
    gc.collect()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(C.has_priority()))
    thread.start()
    thread.join()
    assert seen == [False]


def test_where_it_cannot_be_had_a_warning_says_why_once_and_nothing_changes(monkeypatch):
    from torchgil import _priority as priority

    monkeypatch.setattr(priority, "priority_unavailable", lambda: "the moon is full")
    priority._warn_once_if_unavailable.cache_clear()
    with pytest.warns(RuntimeWarning, match="gil_priority: the moon is full; nothing is changed"):
        with priority.gil_priority():
            pass
    with priority.gil_priority():  # silent: warnings are errors here
        pass
    priority._warn_once_if_unavailable.cache_clear()
