"""A hang is told of under the names of the threads that had to do with it, and of no others."""

from __future__ import annotations

import sys

import pytest

from tests.tracing.hangs import child, told


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the system's number of such a thread is not known")
def test_a_thread_is_not_taken_for_one_that_had_its_state_before() -> None:
    done = child("""
        import _thread
        numbers = []
        with watched(0.1) as watchdog:
            def work(seconds):
                numbers.append(threading.get_native_id())
                held.sleep(seconds)
                done.set()
            for _ in range(3):
                done = threading.Event()
                _thread.start_new_thread(work, (0.2,))
                done.wait()
                end = time.monotonic() + 1.1  # the names are noted once in a second
                while time.monotonic() < end:
                    sum(range(100))
        print(len(watchdog.hangs), *numbers)
    """)
    hangs, *numbers = done.stdout.split()
    assert hangs == "3"
    first = [part for part in told(done) if "still does\n  it sleeps in clock_nanosleep" in part]
    for number in numbers:
        assert any(f"(thread {number}) has held it" in part for part in first), (number, done)


def test_workers_of_torchgil_and_threads_with_priority_are_among_those_that_wait() -> None:
    done = child("""
        def first():
            with torchgil.gil_priority():
                wanting()
        for target, name in (wanting, "torchgil-worker_0"), (first, "first"), (first, "second"):
            threading.Thread(target=target, name=name, daemon=True).start()
        with watched(0.3) as watchdog:
            time.sleep(0.1)
            held.sleep(0.5)
            time.sleep(0.1)
        print(sorted(each.thread_name for each in watchdog.hangs[0].waiting))
    """)
    assert done.stdout == "['first', 'second', 'torchgil-worker_0']\n", done


def test_names_of_a_class_of_str_are_read_as_well() -> None:
    done = child("""
        class Name(str):
            pass
        for name in "plain", "h\\u00e4", "\\u65e5\\u672c", "\\U0001f600":
            code = compile("held.sleep(0.25)", Name(name), "exec")
            with watched(0.1) as watchdog:
                exec(code)
            assert watchdog.hangs[0].stack[-1].filename == name
    """)
    assert "could not be read" not in done.stderr


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="an interpreter has a GIL of its own there")
def test_of_a_thread_in_a_sub_interpreter_no_other_threads_number_is_told() -> None:
    done = child("""
        import _xxsubinterpreters as interpreters
        other = interpreters.create()  # the thread that does, is the one that its states speak of
        code = "import ctypes; ctypes.PyDLL(None).poll(None, 0, 400)"
        with watched(0.1):
            thread = threading.Thread(target=interpreters.run_string, args=(other, code))
            thread.start()
            thread.join()
        interpreters.destroy(other)
    """)
    first = told(done)[0]
    assert first.startswith("torchgil: the GIL is stuck: (in a sub-interpreter) has held it"), done
    assert "  it is not known to run or to sleep; " in first
    assert ", in <module>\n" in first


def test_a_frame_between_others_that_the_interpreter_does_not_show_is_not_told() -> None:
    """It has one around the __init__ of a class that was called often, from 3.12 on."""
    done = child("""
        class Made:
            def __init__(self, seconds):
                held.sleep(seconds)
        def make(seconds):
            return Made(seconds)
        for _ in range(100):
            make(0)
        for _ in range(20):  # so is a watchdog's own start
            with watched(0.1) as watchdog:
                make(0)
        with watched(0.1) as watchdog:
            make(0.25)
        print(*(frame.name for frame in watchdog.hangs[0].stack[-3:]))
    """)
    assert done.stdout == "<module> make __init__\n", done
