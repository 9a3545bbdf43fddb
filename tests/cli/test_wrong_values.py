"""Each option of each command: a value that it cannot have is argparse's error, before anything is done."""

from __future__ import annotations

import re

import pytest

from tests.conftest import run_in_child, run_torchgil
from torchgil.cli import COMMANDS, main

NOT_A_COUNT = ["", "-1", "0.5", "1e3", "nan", "inf", "x", "0x10", " 3", "9" * 5000, "99999999999999999999"]
NOT_A_DURATION = [
    "",
    "-1",
    "-5ms",
    "0",
    "0ms",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "x",
    "5 ms",
    "5m",
    "1.2.3",
    "1s1",
]
NOT_A_FILE = ["", ".", "nowhere/f.json", "/proc/nothing/f.json", f"{'x' * 300}.json"]
NOT_A_NAME = [*NOT_A_FILE, "f", "f.txt", "json"]
FILES = {"-o": NOT_A_NAME, "--output": NOT_A_NAME, "--json": NOT_A_FILE}
PICTURES = {**FILES, "--plot": NOT_A_FILE}
REPORTS = {**PICTURES, "--trace": NOT_A_FILE, "--html": NOT_A_FILE}

# command -> what stands behind its options, and each option with values that it cannot have; []: it has none.
OPTIONS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "audit": (
        ["script.py"],
        {
            **REPORTS,
            "--top": NOT_A_COUNT,
            "--max-events": [*NOT_A_COUNT, "0", "4294967297"],
            "--fail-if-held": [*NOT_A_DURATION, "3601"],
            "-m": [],
        },
    ),
    "report": (["r.json"], {**REPORTS, "--top": NOT_A_COUNT}),
    "watch": (
        ["script.py"],
        {
            **FILES,
            "--threshold": [*NOT_A_DURATION, "1us", "3601", "1e300"],
            "--hang": [*NOT_A_DURATION, "1us", "86401", "1e300"],
            "--hang-output": NOT_A_FILE,
            "--exit-after": [*NOT_A_DURATION, "1s", "86401", "1e300"],
            "--stacks": [],
            "--fail": [],
            "-m": [],
        },
    ),
    "run": (["script.py"], {"--gil-priority": [], "-m": []}),
    "compare": (
        [],
        {
            **PICTURES,
            "--workers": [*NOT_A_COUNT, "0", "4097"],
            "--in-flight": [*NOT_A_COUNT, "0"],
            "--visits": [*NOT_A_COUNT, "0"],
            "--seconds": NOT_A_DURATION,
            "--timeout": NOT_A_DURATION,
            "--quick": [],
        },
    ),
    "new": (["my_new_op"], {"--dir": []}),
    "doctor": ([], FILES),
    "demo": ([], {**PICTURES, "--device": ["", "tpu", "cuda:0", "0"], "--quick": []}),
}


def test_the_table_has_every_option_of_every_command():
    assert OPTIONS.keys() == COMMANDS.keys()
    for command, (_, options) in OPTIONS.items():
        listed = re.findall(r"(?m)^ {2,}(-.*?)(?:  |$)", run_torchgil(command, "--help").stdout)
        there = {option for line in listed for option in re.findall(r"(?<!\w)--?[a-z][a-z-]*", line)}
        assert there == {*options, "-h", "--help"}, command


def refused(capsys, arguments: list[str]) -> str:
    """What argparse says to them; fails where it takes them."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.out == ""
    assert said.err.startswith("usage: torchgil")
    return said.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command, (_, options) in OPTIONS.items() for option in options if options[option]],
)
def test_a_wrong_value_is_refused_by_name(command, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("raise AssertionError('it ran')")
    behind, options = OPTIONS[command]
    for value in options[option]:
        said = refused(capsys, [command, option, value, *behind])
        assert said.startswith(f"torchgil {command}: error: "), (value, said)
        assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.parametrize("command", OPTIONS)
def test_an_option_that_there_is_not_is_refused(command, capsys):
    refused(capsys, [command, "--no-such-option", *OPTIONS[command][0]])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["audit"], "a SCRIPT, or -m MODULE, is needed"),
        (["audit", "-m"], "a SCRIPT, or -m MODULE, is needed"),
        (["watch", "nowhere.py"], "no such script: nowhere.py"),
        (["watch", "x" * 300], "no such script: xxx"),
        (["run", "--gil-priority", ""], "no such script: "),
        (["compare", "app"], "MODULE:FACTORY"),
        (["compare", f"{'x' * 300}.py:factory"], "xxx"),
        (["compare", "app:factory", "more"], "unrecognized arguments: more"),
        (["doctor", "more"], "unrecognized arguments: more"),
        (["demo", "more"], "unrecognized arguments: more"),
    ],
)
def test_what_is_missing_or_too_much_is_said(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, arguments)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b"])
def test_a_folder_that_cannot_be_is_one_line_of_new(name, capsys, tmp_path):
    assert main(["new", "my_new_op", "--dir", str(tmp_path / name)]) == 2
    assert re.fullmatch(r"torchgil new: .* cannot be written: File name too long\n", capsys.readouterr().err)
    assert main(["new", "x" * 300, "--dir", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_two_dashes_end_the_options_of_every_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no such script: --top" in refused(capsys, ["audit", "--", "--top"])
    assert "no such script: --fail" in refused(capsys, ["watch", "--", "--fail"])
    assert "no such script: -m" in refused(capsys, ["run", "--gil-priority", "--", "-m", "json.tool"])
    assert "MODULE:FACTORY or FILE.py:FACTORY, got '--quick'" in refused(capsys, ["compare", "--", "--quick"])
    assert main(["report", "--", "--top"]) == 2
    assert "--top: No such file or directory" in capsys.readouterr().err
    assert main(["new", "--", "--dir"]) == 2
    assert "'--dir' cannot be imported" in capsys.readouterr().err
    assert main(["--", "--version"]) == 2
    assert "no command '--version'" in capsys.readouterr().err


def test_two_dashes_among_a_modules_own_arguments_stay_there(tmp_path):
    (tmp_path / "mine.py").write_text("import sys; print(sys.argv[1:])")
    for command in ("audit", "watch", "run --gil-priority"):
        done = run_torchgil(*command.split(), "-m", "mine", "a", "--", "-b", "--", "c", cwd=tmp_path)
        assert (done.exit_code, done.stdout) == (0, "['a', '--', '-b', '--', 'c']\n"), done.stderr


@pytest.mark.parametrize("command", ["audit", "report", "watch", "run"])
def test_an_extension_that_does_not_fit_is_one_line(command):
    code = f"""
        import sys, types
        built_for = types.ModuleType("torchgil._built_for")
        built_for.TORCH_VERSION, built_for.PYTHON_VERSION = None, "2.7"
        sys.modules["torchgil._built_for"] = built_for
        from torchgil.cli import main
        sys.exit(main([{command!r}, "x"]))
    """
    child = run_in_child(code, fresh=True, check=False)
    assert (child.exit_code, child.stdout) == (2, "")
    (line,) = child.stderr.splitlines()
    assert line.startswith(f"torchgil {command}: torchgil was built for Python 2.7 but this is Python")


def test_a_name_with_dashes_can_be_run_behind_two_of_them(tmp_path):
    (tmp_path / "--odd.py").write_text("import sys; print(sys.argv)")
    for command in ("audit", "watch", "run --gil-priority"):
        done = run_torchgil(*command.split(), "--", "--odd.py", "--", "-m", cwd=tmp_path)
        assert (done.exit_code, done.stdout) == (0, "['--odd.py', '--', '-m']\n"), done.stderr
