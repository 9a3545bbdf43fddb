"""The files that commands write: by an option for each kind, or by the end of a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run_torchgil
from tests.tracing.test_report_file import of_version_1
from torchgil.cli import main


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.json"
    of_version_1().save_json(path)
    return path


def test_the_end_of_a_name_says_what_is_written(saved, tmp_path):
    pytest.importorskip("matplotlib")
    by_option = {"--json": "a.json", "--trace": "a.trace.json", "--plot": "a.png", "--html": "a.html"}
    by_name = [name.replace("a.", "b.") for name in by_option.values()]
    options = [word for pair in by_option.items() for word in pair]
    options += [word for name in by_name for word in ("-o", name)]
    done = run_torchgil("report", saved, *options, cwd=tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    for one, other in zip(by_option.values(), by_name, strict=True):
        assert (tmp_path / one).read_bytes() == (tmp_path / other).read_bytes()
    assert len({(tmp_path / name).read_bytes() for name in by_name}) == 4


def test_a_kind_can_be_asked_for_twice_and_upper_case_is_the_same_end(saved, tmp_path):
    done = run_torchgil("report", saved, "--json", "1", "-o", "2.JSON", "--output", "3.json", cwd=tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert [(tmp_path / name).read_bytes() == saved.read_bytes() for name in ("1", "2.JSON", "3.json")] == [
        True
    ] * 3


def test_every_command_that_writes_takes_it(tmp_path):
    (tmp_path / "script.py").write_text("print('ran')")
    for command, name in (("audit", "a.html"), ("watch", "w.json")):
        done = run_torchgil(command, "-o", name, "script.py", "-o", "its own", cwd=tmp_path)
        assert (done.exit_code, done.stdout) == (0, "ran\n"), done
        assert (tmp_path / name).stat().st_size > 0
    assert run_torchgil("doctor", "-o", "d.json", cwd=tmp_path).exit_code == 0
    assert json.loads((tmp_path / "d.json").read_text())["format"] == "torchgil-doctor"


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*arguments])
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name", "ends"),
    [
        ("report", "r.xml", ".trace.json or .json or .png or .svg or .pdf or .html"),
        ("audit", "r", ".trace.json or .json or .png or .svg or .pdf or .html"),
        ("watch", "w.png", ".json"),
        ("compare", "c.html", ".json or .png or .svg or .pdf"),
        ("demo", "d.html", ".json or .png or .svg or .pdf"),
        ("doctor", "-", ".json"),
    ],
)
def test_an_end_that_the_command_cannot_write_is_refused_with_those_that_it_can(command, name, ends, capsys):
    said = refused(capsys, command, "-o", name)
    assert f"a name that ends with {ends} is expected, got {name!r}" in said


def test_a_picture_of_an_unknown_format_is_refused_before_the_work(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    script = tmp_path / "script.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    said = refused(capsys, "audit", "--plot", str(tmp_path / "gil.docx"), str(script))
    assert "matplotlib draws no picture whose name ends with .docx" in said
    assert not (tmp_path / "ran").exists()


def test_a_name_that_no_file_can_have_is_refused_before_the_work(capsys, tmp_path):
    assert "File name too long" in refused(capsys, "watch", "-o", f"{'x' * 300}.json", "script.py")
    link = tmp_path / "link.json"
    link.symlink_to(link)
    assert "levels of symbolic links" in refused(capsys, "watch", "-o", str(link), "script.py")
    assert not list(Path.cwd().glob("xxx*"))
