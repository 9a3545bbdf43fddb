"""Several threads with priority: they wait for each other, and not behind the others."""

import pytest

from tests.conftest import run_in_child
from tests.priority.test_priority import BUSY
from tests.support.retries import once

# One thread with priority opens what another one waits for, and stays in Python for a while. Prints how
# often it came to the end of that before the other one had the GIL.
OPENS = f"""{BUSY}
latches = [torchgil.Latch() for _ in range(200)]
opened = [torchgil.Latch() for _ in range(200)]
def opens():
    with torchgil.gil_priority():
        for latch, back in zip(latches, opened):
            released.sleep(0.001)  # the other one waits by now
            order.clear()
            latch.open()
            for _ in range({{steps}}): pass
            order.append("opens")
            released.wait(back, 60)
def waits():
    with torchgil.gil_priority():
        for latch, back in zip(latches, opened):
            released.wait(latch, 60)
            order.append("waits")
            first.append(order[0])
            back.open()
first = []
threads = [threading.Thread(target=f) for f in (opens, waits)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(first.count("opens"))
"""


def test_one_waits_until_another_lets_the_gil_go():
    """It took some 50 us: thrown out, it would have lost more than the other one gained."""

    def check():
        assert int(run_in_child(OPENS.format(steps=2000)).stdout) > 185

    once(check)  # a third process may have the core meanwhile


def test_but_not_for_long():
    """The control: after 200 us it asks, though the interval is a hundred seconds."""

    def check():
        assert int(run_in_child(OPENS.format(steps=400_000)).stdout) < 100

    once(check)


def test_one_that_was_forced_out_comes_back_while_another_is_busy():
    """The interpreter would let it wait for its interval, a hundred seconds here."""
    code = f"""{BUSY}
forced = False
def in_python():
    with torchgil.gil_priority():
        released.wait(started, 60)
        while not forced:
            pass
        order.append("forced out")
def force():
    global forced
    with torchgil.gil_priority():
        released.wait(started, 60)
        released.sleep(0.05)
        forced = True
count = 1_000_000_000
threads = [threading.Thread(target=f) for f in (in_python, force, busy)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*order)"""
    assert run_in_child(code).stdout.split("\n")[0] == "forced out busy"


def test_the_others_have_their_turn_although_the_line_is_never_empty():
    """Three threads with priority hand the GIL to each other; the interpreter's interval is never over."""
    code = f"""{BUSY}
turn = False
def work():
    with torchgil.gil_priority():
        while not turn:
            released.spin(10e-6)
def other():
    global turn
    released.sleep(0.05)
    turn = True
threads = [threading.Thread(target=f) for f in (work, work, work, other)]
for thread in threads: thread.start()
for thread in threads: thread.join()"""
    run_in_child(code)


def test_all_have_their_turn_where_all_have_priority():
    """Busy in Python, and so asked: each of them after each other one, without an interval."""
    code = f"""{BUSY}
counts = [0] * 4
def work(i):
    with torchgil.gil_priority():
        while min(counts) < 20:
            for _ in range(1000): pass
            released.sleep(0)
            counts[i] += 1
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()"""
    run_in_child(code)


@pytest.mark.parametrize("ends", ["returns", "raises", "leaves its block"])
def test_one_that_ends_leaves_the_gil_to_the_next_in_line(ends):
    how = {
        "returns": "return",
        "raises": "raise SystemExit",
        "leaves its block": "block.__exit__(None, None, None)",
    }[ends]
    code = f"""{BUSY}
inside, done = 0, []
def work():
    global inside
    block = torchgil.gil_priority()
    block.__enter__()
    inside += 1
    released.wait(started, 60)
    for _ in range(50):
        released.spin(10e-6)
    done.append(None)
    {how}
threads = [threading.Thread(target=work) for _ in range(40)]
spinner = threading.Thread(target=busy)
with torchgil.gil_priority():
    for thread in threads: thread.start()
    while inside < 40: released.sleep(0.001)
    spinner.start()
    while len(done) < 40: released.sleep(0.001)
    order.append("main")
for thread in [*threads, spinner]: thread.join()
print(*order)"""
    assert run_in_child(code, "with").stdout.split() == ["main", "busy"]


def test_the_last_block_may_end_while_its_thread_waits_in_line():
    """Another thread ends it, as the collector may: the wait goes on, as any thread's."""
    code = f"""{BUSY}
blocks = []
def work():
    block = torchgil.gil_priority()
    block.__enter__()
    blocks.append(block)
    for _ in range(2000):
        released.spin(10e-6)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
with torchgil.gil_priority():
    while len(blocks) < 3:
        released.sleep(0.001)
for block in blocks:
    block.__exit__(None, None, None)
for thread in threads: thread.join()"""
    run_in_child(code)
