"""torchgil run: the program is its own, but for its main thread's priority."""

import pytest

from tests.conftest import run_in_child
from torchgil.cli import run

RUN = "import sys; from torchgil.cli import main; sys.exit(main(['run', *sys.argv[1:]]))"


def test_the_main_thread_has_priority_and_others_do_not(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, threading\n"
        "from torchgil._gil_half import C\n"
        "seen = []\n"
        "other = threading.Thread(target=lambda: seen.append(C.has_priority()))\n"
        "other.start(); other.join()\n"
        "print(C.has_priority(), *seen, *sys.argv[1:])\n"
        "sys.exit(3)\n"
    )
    child = run_in_child(RUN, "--gil-priority", str(program), "--lr", "1", check=False)
    assert child.stdout.split() == ["True", "False", "--lr", "1"]
    assert child.exit_code == 3
    plain = run_in_child(RUN.replace("'run', ", "'watch', "), str(program), check=False)
    assert plain.stdout.split() == ["False", "False"]  # the control: another command's program has none


def test_a_module_is_run_as_python_would():
    child = run_in_child(RUN, "--gil-priority", "-m", "this")
    assert "Beautiful is better than ugly." in child.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "a SCRIPT, or -m MODULE, is needed"),
        (["--gil-priority", "nowhere.py"], "no such script: nowhere.py"),
        ([__file__], "without it use python"),
    ],
)
def test_what_cannot_be_run_is_said(argv, message, capsys):
    with pytest.raises(SystemExit):
        run.main(argv)
    assert message in capsys.readouterr().err
