"""`torchgil report`: a saved report is printed, drawn and written again; a file that is none is one line."""

from __future__ import annotations

import pytest

import torchgil
from tests.conftest import Child, run_torchgil
from tests.tracing.test_odd_names import ODD, SHOWN
from tests.tracing.test_report_file import VERSION_1, of_version_1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "r.json"
    of_version_1().save_json(path)
    return path


def ok(child: Child) -> str:
    assert (child.exit_code, child.stderr) == (0, ""), child
    return child.stdout


def test_it_prints_what_the_report_printed(saved):
    assert ok(run_torchgil("report", saved)) == f"{of_version_1()}\n"
    assert ok(run_torchgil("report", VERSION_1)) == f"{of_version_1()}\n"


def test_top_limits_the_ops(saved):
    printed = ok(run_torchgil("report", "--top", "1", saved))
    assert "(1 more ops)" in printed


def test_it_writes_what_the_report_would_write(saved, tmp_path):
    pytest.importorskip("matplotlib")
    files = {f"--{kind}": tmp_path / f"{kind}.png" for kind in ("json", "trace", "plot", "html")}
    ok(run_torchgil("report", saved, *(word for option in files.items() for word in option)))
    one = torchgil.Report.load(saved)
    assert files["--json"].read_bytes() == saved.read_bytes()
    one.save_chrome_trace(tmp_path / "trace")
    assert files["--trace"].read_bytes() == (tmp_path / "trace").read_bytes()
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")
    assert one._repr_html_() in files["--html"].read_text(encoding="utf-8")


def test_what_audit_saved_is_shown_as_audit_showed_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import threading, torch\nt = threading.Thread(target=torch.ones, args=(1,), name={ODD!r})\n"
        "t.start()\nt.join()\n"
    )
    audited = run_torchgil("audit", "--json", tmp_path / "r.json", "--html", tmp_path / "r.html", script)
    assert audited.exit_code == 0, audited
    printed = ok(run_torchgil("report", tmp_path / "r.json"))
    assert audited.stderr == f"\n{printed}"
    assert SHOWN in printed
    assert SHOWN in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nowhere", None, "nowhere: No such file or directory"),
        (".", None, ": Is a directory"),
        (
            "r.json",
            "{",
            "r.json cannot be read as a report of torchgil: it ends in the middle, at character 1",
        ),
        ("r.json", '{"format": "x"}', "its format is 'x', and not 'torchgil-trace'"),
        ("two\nlines", "", r"two\nlines cannot be read as a report of torchgil: it is empty, at character 0"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_2(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    child = run_torchgil("report", tmp_path / name)
    assert (child.exit_code, child.stdout) == (2, "")
    (line,) = child.stderr.splitlines()
    assert line.startswith(f"torchgil report: {tmp_path}")
    assert says in line


@pytest.mark.parametrize("option", ["--trace", "--plot"])
def test_a_timeline_that_was_not_saved_is_said_before_anything_is_written(option, tmp_path):
    pytest.importorskip("matplotlib")
    child = run_torchgil("report", VERSION_1, option, tmp_path / "t", "--json", tmp_path / "r.json")
    assert (child.exit_code, child.stdout) == (2, "")
    assert child.stderr.endswith("was saved without its timeline, so there is nothing to draw\n")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_said_beside_what_is_printed(saved):
    child = run_torchgil("report", saved, "--json", "/dev/full")
    assert child.exit_code == 1
    assert child.stdout == f"{of_version_1()}\n"
    assert child.stderr == "torchgil: /dev/full could not be written: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: REPORT"),
        (["r.json", "--top", "-1"], "a whole number from 0 is expected"),
        (["r.json", "--html", "nowhere/r.html"], "no folder"),
        (["r.json", "more.json"], "unrecognized arguments: more.json"),
    ],
)
def test_wrong_calls_say_what_is_missing(arguments, says):
    child = run_torchgil("report", *arguments)
    assert child.exit_code == 2
    assert says in child.stderr


def test_help_has_examples():
    assert "torchgil report report.json --top 50" in ok(run_torchgil("report", "--help"))
