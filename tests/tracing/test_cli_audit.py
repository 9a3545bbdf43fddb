"""`torchgil audit`: the script runs as under python, and the report follows."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import Child, run_torchgil
from torchgil.cli.script import duration_argument


def audit(*arguments, cwd="."):
    return run_torchgil("audit", *arguments, cwd=cwd)


def python(*arguments, cwd=None):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=cwd
    )
    return Child(done.returncode, done.stdout, done.stderr, ())


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))

    def write(code, name="script.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(code))
        return path

    return write


WHO_AM_I = """
    import pickle, sys
    class Mine: pass
    print(sys.argv, __name__, __file__, __spec__ is None, sys.path[0])
    print(pickle.loads(pickle.dumps(Mine())).__class__ is Mine, sys.modules["__main__"].Mine is Mine)
"""


def test_a_script_sees_what_it_sees_under_python(script, tmp_path):
    path = script(WHO_AM_I)
    options = ("--epochs", "1", "--json", "its own")
    under_python = python(path, *options)
    under_audit = audit("--top", "3", path, *options)
    assert under_audit.stdout == under_python.stdout
    assert under_audit.exit_code == under_python.exit_code == 0
    assert "torchgil: " in under_audit.stderr
    assert "MainThread" in under_audit.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P came with 3.11")
def test_what_lies_beside_a_script_is_not_found_where_the_path_is_safe(script):
    path = script("import sys; print(sys.path)")
    under_python = python("-P", path)
    assert str(path.parent) not in under_python.stdout
    assert python("-P", "-m", "torchgil", "audit", path).stdout == under_python.stdout


def test_a_script_means_what_it_means_under_python(script, tmp_path):
    path = script(
        """
        import os
        def annotated(x: 3): pass
        print(annotated.__annotations__, os.path.isabs(__file__))
        """
    )
    under_python = python(path.name, cwd=tmp_path)
    assert under_python.stdout == "{'x': 3} True\n"
    assert audit(path.name, cwd=tmp_path).stdout == under_python.stdout


@pytest.mark.parametrize("command", ["audit", "watch"])
def test_a_script_that_leaves_an_executor_open_ends_as_under_python(script, command):
    path = script(
        """
        import threading, time
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(2)
        print(pool.submit(int).result(), flush=True)
        def late():
            time.sleep(0.1)
            threading.Thread(target=print, args=("the last thread",)).start()
        threading.Thread(target=late).start()
        pool.submit(time.sleep, 0.2).add_done_callback(lambda _: print("the last call", flush=True))
        """
    )
    done = run_torchgil(command, path)
    assert done.exit_code == 0
    assert sorted(done.stdout.splitlines()) == ["0", "the last call", "the last thread"]


def test_a_module_sees_what_it_sees_under_python(script, tmp_path):
    script("import sys; print(sys.argv, __name__, __package__, sys.path[0])", "package/__main__.py")
    script("", "package/__init__.py")
    under_python = python("-m", "package", "--x", "1", cwd=tmp_path)
    under_audit = audit("-m", "package", "--x", "1", cwd=tmp_path)
    assert under_audit.stdout == under_python.stdout
    assert under_audit.exit_code == 0, under_audit.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit('a message')",
        "import sys; sys.exit()",
        "raise ValueError('mine')",
        "def f():\n    1 / 0\nf()",
        "x = = 1",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    ],
)
def test_exit_code_and_exceptions_are_the_scripts_own(script, code):
    path = script(code)
    under_python = python(path)
    under_audit = audit(path)
    assert under_audit.exit_code == under_python.exit_code
    assert under_audit.stdout == under_python.stdout
    assert under_audit.stderr.startswith(under_python.stderr)
    assert "torchgil: " in under_audit.stderr


def test_the_report_is_written_where_it_was_asked_for(script, tmp_path):
    path = script("import torch; x = torch.ones(100, 100); torch.mm(x, x)")
    done = audit(
        "--json", tmp_path / "r.json", "--trace", tmp_path / "t.json", "--plot", tmp_path / "p.png", path
    )
    assert done.exit_code == 0, done.stderr
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert "aten::mm" in [op["name"] for op in numbers["ops"]]
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_hold_over_the_limit_is_exit_code_3_with_the_culprit_named(script):
    path = script("import torchgil; torchgil.held.spin(0.05)")
    done = audit("--fail-if-held", "5ms", path)
    assert done.exit_code == 3, done.stderr
    assert "the GIL was held too long" in done.stderr
    assert re.search(r"torchgil::spin: up to \d+\.\d ms, 1 of 1 calls entered with the GIL held", done.stderr)


@pytest.mark.parametrize(("policy", "limit"), [("held", "500ms"), ("released", "5ms")])
def test_what_holds_for_less_than_the_limit_is_no_failure(script, policy, limit):
    path = script(f"import torchgil; torchgil.{policy}.spin(0.05)")
    done = audit("--fail-if-held", limit, path)
    assert done.exit_code == 0, done.stderr
    assert "the GIL was held too long" not in done.stderr


def test_a_line_that_is_no_op_and_held_too_long_is_named(script):
    path = script("""
        n = list(range(5_000_000))
        n[::2] = reversed(n[::2])
        print(sorted(n)[-1])  # the culprit
    """)
    done = audit("--fail-if-held", "100ms", path)
    assert done.exit_code == 3, done.stderr
    assert "script.py:4 in <module>: print(sorted(n)[-1])" in done.stderr


def test_a_script_of_pure_python_does_not_hold_too_long(script):
    path = script("x = 0\nfor i in range(5_000_000):\n    x += i\n")
    done = audit("--fail-if-held", "50ms", path)
    assert done.exit_code == 0, done.stderr


def test_a_script_that_fails_keeps_its_exit_code_even_if_it_held_too_long(script):
    path = script("import sys, torchgil; torchgil.held.spin(0.05); sys.exit(9)")
    assert audit("--fail-if-held", "5ms", path).exit_code == 9


def test_a_fork_that_runs_to_the_scripts_end_reports_nothing(script):
    path = script("""
        import os
        pid = os.fork()
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print("done")
    """)
    done = audit(path)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "done\ndone\n"
    assert done.stderr.count("torchgil: ") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a SCRIPT, or -m MODULE, is needed"),
        (["nowhere.py"], "no such script: nowhere.py"),
        (["--fail-if-held", "soon", "x.py"], "a duration such as 5ms"),
    ],
)
def test_wrong_calls_say_what_is_missing(arguments, says, script):
    done = audit(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("audit", "--json"),
        ("audit", "--trace"),
        ("audit", "--plot"),
        ("audit", "--html"),
        ("report", "--json"),
        ("watch", "--json"),
        ("doctor", "--json"),
    ],
)
@pytest.mark.parametrize(("where", "says"), [("nowhere/file", "no folder"), ("", "is a folder")])
def test_a_file_that_cannot_be_written_is_said_before_the_script_runs(
    script, tmp_path, command, option, where, says
):
    path = () if command == "doctor" else (script("print('it ran')"),)  # a report of none, it would say later
    done = run_torchgil(command, option, tmp_path / where, *path)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_a_line_just_over_the_smallest_limit_is_found_every_time(script):
    path = script("""
        import ctypes
        libc = ctypes.PyDLL(None)  # calls with the GIL held
        for _ in range(5):
            libc.usleep(20_000)  # the culprit
    """)
    done = audit("--fail-if-held", "10ms", path)
    assert done.exit_code == 3, done.stderr
    assert done.stderr.count("script.py:5 in <module>: libc.usleep(20_000)") == 5, done.stderr


def test_help_has_examples(script):
    done = audit("--help")
    assert done.exit_code == 0
    assert "torchgil audit --fail-if-held 5ms" in done.stdout


@pytest.mark.parametrize("text", ["", "ms", "-1ms", "0", "nan", "inf", "5 parsecs", "1.2.3", "1e999"])
def test_a_bad_duration_says_what_is_expected(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a duration such as 5ms"):
        duration_argument(text)
