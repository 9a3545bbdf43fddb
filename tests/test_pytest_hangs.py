"""``pytest --gil-hang``: a test in which the GIL is stuck fails, or ends its process, with the line."""

from __future__ import annotations

import re

import pytest

from tests.test_pytest_plugin import run

pytest_plugins = ["pytester"]

__all__ = ["run"]  # the fixture


# On a loaded machine the import of torch holds the GIL for most of a second: that is to be no hang here.
HANGS = """
    import ctypes, os, subprocess, threading
    import pytest
    from torchgil import held

    def test_quick():
        pass

    def test_too_long():
        held.sleep(2.6)

    @pytest.fixture
    def slow():
        held.sleep(2.6)

    def test_in_its_set_up(slow):
        pass

    def test_that_fails_by_itself():
        held.sleep(2.6)
        assert 0, "by itself"

    def test_in_another_thread():
        thread = threading.Thread(target=held.sleep, args=(2.6,), name="another")
        thread.start()
        thread.join()
        print("captured")

    @pytest.mark.max_gil_hold(5)
    def test_beside_a_marker():
        held.sleep(2.6)

    def test_afterwards():
        pass
"""


@pytest.mark.parametrize(
    "options", [["--gil-hang", "2"], ["--gil-hang=2", "-n", "2"]], ids=["alone", "xdist"]
)
def test_a_test_in_which_the_gil_is_stuck_fails_and_the_run_goes_on(run, options: list[str]) -> None:  # type: ignore[no-untyped-def]
    result = run(HANGS, "-rA", *options)
    result.assert_outcomes(passed=2, failed=4, errors=1)
    text = result.stdout.str()
    # In CI pytest has it in the lines of its summary, too, which begin otherwise.
    stuck = re.findall(r"^the GIL was stuck \(--gil-hang\): MainThread held the GIL for", text, re.MULTILINE)
    assert len(stuck) == 3
    assert "the GIL was stuck (--gil-hang): another held the GIL for" in text
    assert re.search(r"in test_too_long: held\.sleep\(2\.6\)", text)
    # No frame of pytest's own, but of a thread all that there are.
    assert not re.search(r'^  File ".*/(_pytest|pluggy|xdist|execnet)/', text, re.MULTILINE)
    assert set(re.findall(r'^  File ".*", line \d+, in (test_too_long|slow)$', text, re.MULTILINE)) == {
        "test_too_long",
        "slow",
    }
    assert re.search(r'^  File ".*threading\.py", line \d+, in _bootstrap$', text, re.MULTILINE)
    assert "by itself" in text
    assert "The GIL was stuck" in text
    assert result.stderr.str().count("the GIL is stuck:") >= 5


def test_a_hang_while_modules_are_imported_is_told_of_and_is_no_tests(run) -> None:  # type: ignore[no-untyped-def]
    result = run(
        """
        from torchgil import held
        held.sleep(2.6)
        def test_innocent():
            pass
        """,
        "--gil-hang=2",
    )
    result.assert_outcomes(passed=1)
    result.stderr.fnmatch_lines(["torchgil: the GIL is stuck: MainThread *"])


STUCK = """
    import threading, time
    import ctypes, pytest

    holding = ctypes.PyDLL(None)

    def test_before():
        pass

    def test_deadlock():
        mutex = ctypes.create_string_buffer(64)
        def other():
            holding.pthread_mutex_lock(mutex)
            locked.set()
            while not entered:
                time.sleep(0.001)
            time.sleep(0.05)
        locked, entered = threading.Event(), []
        threading.Thread(target=other, daemon=True).start()
        locked.wait()
        entered.append(True)
        holding.pthread_mutex_lock(mutex)

    def test_after():
        pass
"""


def test_where_it_never_comes_free_the_process_ends_with_the_stacks(run) -> None:  # type: ignore[no-untyped-def]
    result = run(STUCK, "--gil-hang", "2")
    assert result.ret == 70
    result.stderr.fnmatch_lines(
        [
            "torchgil: the GIL is stuck: MainThread * has held it for 2.* s and still does",
            "  it sleeps in futex: it holds the GIL and waits for something else; 1 thread waits for the GIL",
            "*, in test_deadlock",
            "*, in other",
            "torchgil: this process ends with exit code 70, since the GIL was held for so long",
        ]
    )


def test_under_xdist_one_worker_ends_and_the_others_run_on(run) -> None:  # type: ignore[no-untyped-def]
    result = run(STUCK, "-n", "1", "--gil-hang", "2")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running '*::test_deadlock'*"])
    result.stderr.fnmatch_lines(["*, in test_deadlock"])


def test_the_ini_file_may_ask_for_it(run, pytester: pytest.Pytester) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(conftest="")
    result = run(HANGS, "-o", "gil_hang=2", "-k", "too_long")
    result.assert_outcomes(failed=1)
    run(HANGS, "-o", "gil_hang=2", "--gil-hang", "30", "-k", "too_long").assert_outcomes(passed=1)


@pytest.mark.parametrize("value", ["a", "0", "nan", "-1", "1e9"])
def test_a_wrong_time_is_an_error_of_usage(run, value: str) -> None:  # type: ignore[no-untyped-def]
    result = run("", f"--gil-hang={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gil-hang, or gil_hang: from 0.1 to 3600 seconds are expected, got*"])
