"""The parker: no token is lost, the GIL is released while one waits, and a fork or Ctrl-C harms nobody."""

import math
import threading

import pytest

import torchgil
from tests.conftest import in_threads, run_in_child
from torchgil.ops.parker import Parker

WAITS = {"park": Parker.park, "spin": Parker.spin}


@pytest.fixture(params=WAITS)
def wait(request):
    return WAITS[request.param]


def test_a_token_left_before_ends_the_wait_at_once_and_once(wait):
    parker = Parker()
    parker.unpark()
    parker.unpark()
    assert wait(parker, 3600)
    assert not wait(parker, 0)
    parker.unpark()
    assert wait(parker, 0)


def test_a_wait_without_a_token_ends_with_its_time(wait):
    assert not wait(Parker(), 0.001)


def test_another_python_thread_ends_the_wait(wait):
    parker = Parker()
    other = threading.Thread(target=parker.unpark)
    other.start()
    assert wait(parker, 60)
    other.join()


def test_the_gil_is_released_while_one_waits(wait):
    report = torchgil.audit(wait, Parker(), 0.05)
    assert (report.releases, report.verdict) == (1, "releases")


def test_the_first_is_let_go_on_within_the_one_release():
    mine, other = Parker(), Parker()
    assert torchgil.audit(mine.park, 0.05, other).releases == 1
    assert other.park(0)

    def call_and_answer(i):
        return mine.park(60, other) if i else other.park(60) and not mine.unpark()

    assert in_threads(call_and_answer, 2) == [True, True]


@pytest.mark.parametrize("threads_wait", [("park", "park"), ("park", "spin"), ("spin", "spin")])
def test_no_token_is_lost_between_two_threads(threads_wait):
    parkers = [Parker(), Parker()]
    balls = [0, 0]

    def play(i):
        mine, other = parkers[i], parkers[1 - i]
        for _ in range(2000):
            if i == 0:
                other.unpark()
            assert WAITS[threads_wait[i]](mine, 60)
            balls[i] += 1
            if i == 1:
                other.unpark()

    in_threads(play, 2)
    assert balls == [2000, 2000]


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_time_that_makes_no_sense_is_refused(wait, seconds):
    with pytest.raises(ValueError, match=f"{wait.__name__}: seconds must not be negative or NaN, got"):
        wait(Parker(), seconds)


def test_endless_time_is_none_too_much(wait):
    parker = Parker()
    parker.unpark()
    assert wait(parker, math.inf)


def test_ctrl_c_ends_a_park_in_the_main_thread():
    child = run_in_child(
        """
        import os, signal, threading
        from torchgil.ops.parker import Parker
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            Parker().park(3600)
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert child.stdout == "interrupted\n"


def test_a_signal_handler_that_returns_does_not_end_a_park():
    child = run_in_child(
        """
        import os, signal, threading
        from torchgil.ops.parker import Parker
        parker = Parker()
        later = threading.Timer(0.1, parker.unpark)
        signal.signal(signal.SIGUSR1, lambda *_: (print("handled"), later.start()))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        print(parker.park(60))
        """
    )
    assert child.stdout == "handled\nTrue\n"


def test_a_forked_child_can_drop_a_parker_where_a_thread_of_its_parent_waits():
    run_in_child(
        """
        import os, threading, time, warnings
        from torchgil.ops.parker import Parker
        warnings.simplefilter("ignore")
        parker = Parker()
        thread = threading.Thread(target=parker.park, args=(60,))
        thread.start()
        time.sleep(0.2)
        child = os.fork()
        if not child:
            del parker, thread
            raise SystemExit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        parker.unpark()
        thread.join()
        """
    )
