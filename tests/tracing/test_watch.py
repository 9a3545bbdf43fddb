"""torchgil watch: the script stays itself, and the lines that held the GIL are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Child, run_torchgil
from torchgil.watching import LongHold
from torchgil.watching._summary import summary

ROOT = Path(__file__).parents[2]

SCRIPT = """\
import json, sys, threading
from torchgil import held, released
text = "[" + ",".join(["1.5"] * 1_500_000) + "]"
print("arguments", sys.argv[1:], __name__)
released.spin(0.3)
json.loads(text)
thread = threading.Thread(target=lambda: held.spin(0.2), name="worker")
thread.start()
thread.join()
sys.exit(int(sys.argv[1]))
"""


def watch(*arguments: object, cwd: Path = ROOT) -> Child:
    return run_torchgil("watch", *arguments, cwd=cwd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(SCRIPT)
    return path


def test_names_lines_as_they_hold_and_sums_up(path: Path, tmp_path: Path) -> None:
    done = watch("--threshold", "50ms", "--json", tmp_path / "holds.json", path, "0", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "arguments ['0', '--json'] __main__\n"
    live, _, table = done.stderr.partition("\n\n")
    # On a slow machine the join that makes the text is a third hold, or freeing it.
    (loads,) = [line for line in live.splitlines() if "raw_decode" in line]
    (worker,) = [line for line in live.splitlines() if "<lambda>" in line]
    assert "torchgil: MainThread held the GIL for" in loads
    assert f"in raw_decode, called from {path}:6 in <module>: json.loads(text)" in loads
    assert "torchgil: worker held the GIL for" in worker
    assert f"at {path}:7 in <lambda>: thread = threading.Thread(" in worker
    head, columns, *rows = table.splitlines()
    assert head == "torchgil: holds of the GIL over 50.0 ms"
    assert columns.split() == ["line", "holds", "sum", "longest", "threads"]
    assert any(f"in raw_decode, called from {path}:6 " in row for row in rows)
    assert any(row.startswith(f"{path}:7 in <lambda> ") and row.endswith(" worker") for row in rows)
    written = json.loads((tmp_path / "holds.json").read_text())
    assert (written["format"], written["version"], written["threshold_s"]) == ("torchgil-watch", 1, 0.05)
    (_, held) = [hold for hold in written["holds"] if hold["function"] in ("raw_decode", "<lambda>")]
    assert held["stack"][-1] == [str(path), 7, "<lambda>"]


@pytest.mark.parametrize(("code", "expected"), [("0", 3), ("5", 5)])
def test_fail_gives_exit_code_3_unless_the_script_has_one(path: Path, code: str, expected: int) -> None:
    done = watch("--fail", "--stacks", path, code)
    assert done.exit_code == expected, done.stderr
    assert "Stack (most recent call last):" in done.stderr


def test_exceptions_are_the_scripts_own_and_nothing_is_found_where_nothing_holds(tmp_path: Path) -> None:
    path = tmp_path / "quiet.py"
    path.write_text("from torchgil import released\nreleased.spin(0.3)\nraise ValueError('mine')\n")
    done = watch("--fail", path)
    assert done.exit_code == 1
    assert "ValueError: mine" in done.stderr
    assert "torchgil: no hold of the GIL over 50.0 ms was met" in done.stderr


def test_runs_modules(path: Path) -> None:
    done = watch("-m", "app", "0", cwd=path.parent)
    assert done.exit_code == 0, done.stderr
    assert "app.py:6 in <module>: json.loads(text)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a SCRIPT, or -m MODULE, is needed"),
        (["nothing.py"], "no such script: nothing.py"),
        (["--threshold", "soon", "app.py"], "a duration such as 5ms, 50us or 0.25 (seconds) is expected"),
        (["--threshold", "1ms", __file__], "threshold must be from 0.01 (twice the switch interval"),
    ],
)
def test_wrong_calls_say_what_is_right(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchgil.cli.watch import main

    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    from torchgil.cli.watch import main

    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert "examples:\n  torchgil watch" in out
    assert "--threshold TIME" in out
    assert "nor the file of --json can be written: what is left is the report" in out


def test_summary_counts_by_line_and_sorts_by_sum() -> None:
    def hold(duration_s: float, lineno: int, thread: str = "MainThread") -> LongHold:
        frame = __import__("traceback").FrameSummary("/app.py", lineno, "f", lookup_line=False)
        return LongHold(duration_s, 0.0, thread, 1, "/app.py", lineno, "f", (frame,), True)

    table = summary([hold(0.1, 1), hold(0.25, 2), hold(0.2, 1, "worker")], 0.05)
    rows = [row.split(maxsplit=3) for row in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["/app.py:1", "/app.py:2"]
    assert rows[0][3].split() == ["2", "300", "ms", "200", "ms", "MainThread,", "worker"]


def test_a_hang_is_told_of_while_it_goes_on_and_stands_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    # Whatever the script does to its streams: what is told goes where it went before.
    path.write_text(
        "import os, sys\nfrom torchgil import held\nos.close(2)\nsys.stderr = None\nheld.sleep(1.0)\n"
    )
    done = watch("--hang", "300ms", "--json", tmp_path / "holds.json", path)
    assert done.exit_code == 0, done
    lines = [line for line in done.stderr.splitlines() if line.startswith("torchgil: ")]
    first, again = lines[:2]
    assert "the GIL is stuck: MainThread" in first
    assert "has held it for 0.6" in again
    assert [line for line in lines if line.endswith("it has let it go")]
    assert f'    File "{path}", line 5, in <module>' in done.stderr
    (hang,) = json.loads((tmp_path / "holds.json").read_text())["hangs"]
    assert (hang["lineno"], hang["state"], hang["waiting"]) == (5, "sleeps in clock_nanosleep", [])


def test_reports_of_hangs_may_go_to_a_file_which_exit_after_leaves_behind(path: Path, tmp_path: Path) -> None:
    path.write_text("import os\nfrom torchgil import held\nos.chdir('/')\nheld.sleep(100)\n")
    written = tmp_path / "hangs"
    done = watch("--hang", "200ms", "--exit-after", "500ms", "--hang-output", written, path)
    assert (done.exit_code, done.stderr) == (70, ""), done
    text = written.read_text()
    assert text.startswith("torchgil: the GIL is stuck: MainThread")
    assert f'    File "{path}", line 4, in <module>' in text
    assert text.endswith(
        "torchgil: this process ends with exit code 70, since the GIL was held for so long\n"
    )


def test_exit_after_ends_the_process(path: Path) -> None:
    path.write_text("from torchgil import held\nheld.sleep(100)\n")
    done = watch("--hang", "200ms", "--exit-after", "500ms", path)
    assert done.exit_code == 70, done
    assert done.stderr.endswith(
        "torchgil: this process ends with exit code 70, since the GIL was held for so long\n"
    )


@pytest.mark.parametrize(
    "options",
    [["--hang", "1ms"], ["--exit-after", "5s"], ["--hang", "x"], ["--hang-output", "/no/such/folder/file"]],
)
def test_a_wrong_time_is_an_error_of_usage(path: Path, options: list[str]) -> None:
    done = watch(*options, path)
    assert done.exit_code == 2
    assert "error: " in done.stderr.splitlines()[-1]
