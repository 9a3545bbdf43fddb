"""A hang is told of once in each place that it is told of, and in no other process than its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import torchgil
from tests.tracing.hangs import child
from torchgil import held


@pytest.mark.parametrize("on_hang", [None, lambda hang: None], ids=["the log", "on_hang"])
def test_the_log_has_no_second_entry_as_of_a_long_hold(
    on_hang: object, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with torchgil.Watchdog(hang=0.3, on_hang=on_hang, hang_output=tmp_path / "hangs") as watchdog:  # type: ignore[arg-type]
        held.sleep(0.5)
        held.sleep(0.15)  # the control: no hang
    assert len(watchdog.holds) == 2
    levels = [record.levelname for record in caplog.records if record.name == "torchgil.watchdog"]
    assert levels == (["WARNING"] if on_hang else ["ERROR", "WARNING"])


def test_on_hold_is_called_with_a_hang_too(tmp_path: Path) -> None:
    holds: list[torchgil.LongHold] = []
    with torchgil.Watchdog(on_hold=holds.append, hang=0.1, on_hang=id, hang_output=tmp_path / "hangs"):
        held.sleep(0.3)
    assert [type(hold) for hold in holds] == [torchgil.LongHold]


def test_programs_that_the_process_starts_have_not_the_file_open(tmp_path: Path) -> None:
    done = child(f"""
        path = {str(tmp_path / "hangs")!r}
        def opened_in(folder):
            found = []
            for each in os.listdir(folder):
                with contextlib.suppress(OSError):
                    found.append(os.readlink(f"{{folder}}/{{each}}"))
            return path in found
        with watched(0.1, hang_output=path):
            print(opened_in("/proc/self/fd"))
            program = subprocess.Popen(["sleep", "10"], close_fds=False)
            print(opened_in(f"/proc/{{program.pid}}/fd"))
            program.kill()
            program.wait()
    """)
    assert done.stdout.split() == ["True", "False"]


def test_a_forks_child_that_starts_it_again_is_watched(tmp_path: Path) -> None:
    """As docs/proving.md says to."""
    path = tmp_path / "hangs"
    done = child(f"""
        watchdog = watched(0.1, hang_output={str(path)!r})
        watchdog.start()
        os.register_at_fork(after_in_child=watchdog.start)
        if (pid := os.fork()) == 0:
            def in_the_child():
                held.sleep(0.3)
            in_the_child()
            watchdog.stop()
            os._exit(len(watchdog.hangs))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(watchdog.hangs))
        watchdog.stop()
    """)
    assert done.stdout == "1 0\n", done
    assert ", in in_the_child\n" in path.read_text()
