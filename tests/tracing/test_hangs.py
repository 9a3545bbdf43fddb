"""A hold of the GIL that goes on is told of while it does, with the line and who waits, without Python."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest

import torchgil
from tests.conftest import run_in_child
from tests.tracing.hangs import child, functions, told
from torchgil import held


def test_a_call_that_keeps_the_gil_is_told_of_with_its_stack_before_it_ends() -> None:
    done = child("""
        def outer():
            until_told(0.6)
        with watched(0.1) as watchdog:
            threading.Thread(target=wanting, name="wants it", daemon=True).start()
            outer()
            time.sleep(0.1)
        (hang,) = watchdog.hangs
        print(hang.function, hang.thread_name, hang.state, [frame.name for frame in hang.stack][-2:])
        print(hang.ident == threading.main_thread().ident, hang.duration_s > 0.4, watchdog.stats().hangs)
        print([(each.thread_name, each.stack[-1].name) for each in hang.waiting], hang.deadlocked)
    """)
    first, *others = told(done)
    lines = first.splitlines()
    assert re.fullmatch(
        r"torchgil: the GIL is stuck: MainThread \(thread \d+\) has held it for 0\.1\d+ s and still does",
        lines[0],
    ), done
    assert lines[1] == "  it sleeps in read; 1 thread waits for the GIL"
    assert re.fullmatch(r"  MainThread \(thread \d+\), most recent call last:", lines[3])
    holder, waiting = functions(first)
    assert (holder[-2:], waiting[-1]) == (["outer", "until_told"], "wanting")
    assert re.search(r"^  wants it \(thread \d+\) waits for the GIL:$", first, re.MULTILINE)
    # Again after twice and four times as long, and at the end.
    assert [re.search(r"for (0\.\d)", part)[1] for part in others[:2]] == ["0.2", "0.4"]  # type: ignore[index]
    assert re.fullmatch(
        r"torchgil: MainThread \(thread \d+\) held the GIL for 0\.\d+ s; it has let it go\n", others[-1]
    )
    assert done.stdout.splitlines() == [
        "until_told MainThread sleeps in read ['outer', 'until_told']",
        "True True 1",
        "[('wants it', 'wanting')] False",
    ]


@pytest.mark.parametrize(
    ("call", "state", "function"),
    [
        ("held.spin(0.5)", "it runs;", "<lambda>"),
        ("held.sleep(0.5)", "it sleeps in clock_nanosleep;", "<lambda>"),
        ("holding.poll(None, 0, 500)", "it sleeps in poll;", "<lambda>"),
        ("until_told(0.5)", "it sleeps in read;", "until_told"),
        ("collect()", "it sleeps in clock_nanosleep, amid a garbage collection;", "__del__"),
    ],
)
def test_what_the_thread_does_is_told(call: str, state: str, function: str) -> None:
    done = child(f"""
        class Slow:
            def __del__(self):
                held.sleep(0.5)
        def collect():
            slow = Slow()
            slow.itself = slow
            del slow
            gc.collect()
        with watched(0.1):
            (lambda: {call})()
    """)
    lines = told(done)[0].splitlines()
    assert lines[1].startswith(f"  {state}"), done
    assert functions(told(done)[0])[0][-1] == function


def test_the_native_code_that_it_sleeps_in_is_told() -> None:
    done = child("""
        with watched(0.1) as watchdog:
            held.sleep(0.3)
            holding.poll(None, 0, 300)
            held.spin(0.3)
        for hang in watchdog.hangs:
            print([os.path.basename(path).split(".")[0] for path in hang.objects])
    """)
    ours, foreign, runs = done.stdout.splitlines()
    # What an earlier call left on the stack can be found behind it, and can end the search before it has come
    # to the last of them.
    assert ours.startswith("['_torch'")
    assert runs == "[]"
    assert "'libffi'" in foreign or "'_ctypes'" in foreign
    assert re.search(
        r"^  native code on its stack, the innermost first: /.*/_torch\..*so$", told(done)[0], re.MULTILINE
    )


def test_what_gives_way_or_releases_is_no_hang() -> None:
    done = child("""
        with watched(0.1) as watchdog:
            threading.Thread(target=wanting, daemon=True).start()
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                sum(range(100))
            torchgil.released.spin(0.5)
            time.sleep(0.3)
            print(watchdog.hangs)
            held.sleep(0.3)  # the control
        print(len(watchdog.hangs))
    """)
    assert done.stdout.splitlines() == ["[]", "1"]
    assert "sleeps in clock_nanosleep" in told(done)[0]


DEADLOCK = """
    mutex = ctypes.create_string_buffer(64)
    def has_the_mutex_and_wants_the_gil():
        holding.pthread_mutex_lock(mutex)
        locked.set()
        while not entered:
            time.sleep(0.001)
        time.sleep(0.05)
        holding.pthread_mutex_unlock(mutex)
    locked, entered = threading.Event(), []
    def has_the_gil_and_wants_the_mutex():
        locked.wait()
        entered.append(True)
        holding.pthread_mutex_lock(mutex)
    threading.Thread(target=has_the_mutex_and_wants_the_gil, name="other").start()
"""


def test_a_deadlock_of_gil_and_mutex_is_named_and_ends_the_process_if_asked() -> None:
    done = child(
        f"""
        {textwrap.indent(textwrap.dedent(DEADLOCK), " " * 8).strip()}
        with watched(0.2, exit_after=0.5):
            has_the_gil_and_wants_the_mutex()
        """,
        check=False,
    )
    assert done.exit_code == 70, done
    first, *_, last, end = told(done)
    assert (
        "  it sleeps in futex: it holds the GIL and waits for something else; 1 thread waits for the GIL"
        in first
    )
    holder, waiting = functions(first)
    assert (holder[-1], waiting[-1]) == ("has_the_gil_and_wants_the_mutex", "has_the_mutex_and_wants_the_gil")
    assert re.search(r"has held it for 0\.[56]\d* s", last)
    assert end == "torchgil: this process ends with exit code 70, since the GIL was held for so long\n"


def test_a_hang_in_a_thread_of_no_python_name_and_one_in_a_library_of_c() -> None:
    done = child("""
        import _thread
        done = threading.Event()
        def nameless():
            held.sleep(0.4)
            done.set()
        with watched(0.1):
            _thread.start_new_thread(nameless, ())
            done.wait()
    """)
    # Before 3.11 the interpreter does not keep the number of a thread that threading did not start.
    number = r" \(thread \d+\)" if sys.version_info >= (3, 11) else ""
    assert re.match(rf"torchgil: the GIL is stuck: \S.*{number} has held it", told(done)[0]), done
    assert ", in nameless\n" in told(done)[0]


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    done = child("""
        with watched(1.0) as watchdog:
            stop, go_on = f"kill -STOP {os.getpid()}", f"kill -CONT {os.getpid()}"
            subprocess.Popen(["sh", "-c", f"sleep 0.2; {stop}; sleep 2; {go_on}"])
            began = time.monotonic()
            held.sleep(0.5)
            print(time.monotonic() - began > 2, len(watchdog.hangs))
            os.wait()
            held.sleep(1.5)  # the control
        print(len(watchdog.hangs), all(hold.duration_s < 1.8 for hold in watchdog.holds))
    """)
    assert done.stdout.splitlines() == ["True 0", "1 True"], done
    assert "MainThread" in told(done)[0]


def test_a_file_is_appended_to_and_a_descriptor_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "hangs.txt"
    path.write_text("before\n")
    done = child(f"""
        for output in [{str(path)!r}, os.open({str(path)!r}, os.O_WRONLY | os.O_APPEND)]:
            with watched(0.1, hang_output=output):
                os.chdir("/")
                held.sleep(0.25)
        os.write(output, b"still open\\n")
    """)
    assert done.stderr == ""
    text = path.read_text()
    assert text.startswith("before\ntorchgil: the GIL is stuck: MainThread")
    assert text.endswith("still open\n")
    assert text.count("it has let it go") == 2


def test_a_reader_that_does_not_read_holds_nothing_up() -> None:
    done = child(
        """
        with watched(0.1, hang_output=full_pipe(), exit_after=0.3):
            held.sleep(30)
    """,
        check=False,
    )
    assert done.exit_code == 70


def test_a_closed_descriptor_is_no_fault() -> None:
    child("""
        reader, writer = os.pipe()
        os.close(reader), os.close(writer)
        with watched(0.1, hang_output=writer) as watchdog:
            held.sleep(0.3)
        assert len(watchdog.hangs) == 1
    """)


def test_on_hang_is_called_once_when_it_has_ended_and_else_the_log_is_told(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    hangs: list[torchgil.Hang] = []
    output = tmp_path / "hangs"
    with torchgil.Watchdog(hang=0.1, on_hang=hangs.append, hang_output=output):
        held.sleep(0.5)
    (hang,) = hangs
    assert str(hang).endswith("it sleeps in clock_nanosleep; no other thread waited for the GIL")
    assert hang.extension is not None
    assert "_torch" in hang.extension.path
    with torchgil.Watchdog(hang=0.1, hang_output=output):
        held.sleep(0.5)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.name == "torchgil.watchdog"
    assert "it sleeps in clock_nanosleep" in record.message


def test_names_are_those_of_now_and_odd_ones_break_no_line() -> None:
    done = child("""
        def named_late():
            threading.current_thread().name = "a\\n\\x1b[2J\\u2028\\udc80"
            time.sleep(1.5)
            exec(compile("held.sleep(0.4)", "odd\\nfile\\udc80", "exec"))
        with watched(0.2) as watchdog:
            thread = threading.Thread(target=named_late, name="named early")
            thread.start()
            while thread.is_alive():
                sum(range(1000))
        print(ascii(watchdog.hangs[0].thread_name), ascii(watchdog.hangs[0].filename))
    """)
    (first, *_) = told(done)
    assert first.startswith(r"torchgil: the GIL is stuck: a\x0a\x1b[2J\xe2\x80\xa8\xed\xb2\x80 (thread "), (
        done
    )
    assert r'File "odd\x0afile\xed\xb2\x80", line 1, in <module>' in first
    assert done.stdout.splitlines() == [r"'a\n\x1b[2J\u2028\udc80' 'odd\nfile\udc80'"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hang": 0.001}, "hang must be from 0.01"),
        ({"hang": "a"}, "hang must be from"),
        ({"hang": float("nan")}, "hang must be from"),
        ({"hang": None, "exit_after": 3}, "exit_after needs hang"),
        ({"hang": 5, "exit_after": 3}, "exit_after must be from 5"),
        ({"on_hang": 3}, "on_hang"),
        ({"hang_output": 3.5}, "hang_output must be a path"),
        ({"hang_output": -1}, "hang_output must be a path"),
        ({"hang_output": True}, "hang_output must be a path"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchgil.Watchdog(**options)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_opened_is_an_error_of_start_and_leaves_nothing(tmp_path: Path) -> None:
    watchdog = torchgil.Watchdog(hang_output=tmp_path / "none" / "file")
    with pytest.raises(FileNotFoundError):
        watchdog.start()
    assert not watchdog.running


def test_no_signal_is_sent_and_nothing_of_faulthandlers_is_changed() -> None:
    done = child("""
        import faulthandler, signal
        faulthandler.enable(open(os.devnull, "w"))
        for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) == signal.SIG_DFL and number != signal.SIGCHLD:
                signal.signal(number, lambda number, frame: came.append(number))
        came = []
        def masks():
            lines = open("/proc/self/status").read().splitlines()
            wanted = ("SigBlk", "SigIgn", "SigCgt")
            found = [int(line.split()[1], 16) for line in lines if line.startswith(wanted)]
            return [mask & ~(3 << 31) for mask in found]  # glibc's own two, from the first thread on
        before = masks()
        with watched(0.1) as watchdog:
            during = masks()
            began = time.monotonic()
            held.sleep(0.5)
            slept = time.monotonic() - began
        print(len(watchdog.hangs), came, before == during == masks(), faulthandler.is_enabled(), slept >= 0.5)
    """)
    assert done.stdout == "1 [] True True True\n"


def test_a_process_may_end_in_the_middle_of_a_hang() -> None:
    """Another thread of C calls exit() while the GIL is held: libc's handlers run beside who looks.

    Without torch, whose own handlers there ask for the GIL.
    """
    done = run_in_child(
        """
        import ctypes, torchgil
        class Event(ctypes.Structure):  # sigevent: SIGEV_THREAD calls a function in a thread of its own
            _fields_ = [("value", ctypes.c_size_t), ("signo", ctypes.c_int), ("notify", ctypes.c_int),
                        ("function", ctypes.c_void_p), ("rest", ctypes.c_char * 64)]
        libc = ctypes.CDLL(None, use_errno=True)
        exits = ctypes.cast(libc.exit, ctypes.c_void_p).value
        event, timer = Event(value=23, notify=2, function=exits), ctypes.c_void_p()
        assert libc.timer_create(1, ctypes.byref(event), ctypes.byref(timer)) == 0
        after = (ctypes.c_long * 4)(0, 0, 0, 400_000_000)
        with torchgil.Watchdog(hang=0.1):
            assert libc.timer_settime(timer, 0, after, None) == 0
            ctypes.PyDLL(None).poll(None, 0, 30_000)
        """,
        check=False,
        fresh=True,
    )
    assert done.exit_code == 23, done
    assert "sleeps in poll" in told(done)[0]


def test_a_fork_leaves_the_child_none_and_the_parent_its_own() -> None:
    done = child("""
        with watched(0.1) as watchdog:
            held.sleep(0.3)
            sys.stderr.flush()
            if (pid := os.fork()) == 0:
                held.sleep(0.3)  # nobody watches
                own = watched(0.1, hang_output=os.open(os.devnull, os.O_WRONLY))
                with own:
                    held.sleep(0.3)
                os._exit(len(own.hangs) * 10 + len(watchdog.hangs))
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            held.sleep(0.3)
        print(len(watchdog.hangs))
    """)
    assert done.stdout.splitlines() == ["11", "2"]
    assert sum("is stuck" in part for part in told(done)) >= 2


def test_none_switches_it_off() -> None:
    done = child("""
        with watched(None) as watchdog:
            held.sleep(0.4)
        print(len(watchdog.holds), watchdog.hangs)
    """)
    assert (done.stdout, done.stderr) == ("1 []\n", "")
