"""A script under `audit`, `watch` and `run` is itself: output, exit code, exceptions, whatever it does.

Each is run by python, too, and has to end as it does there; the report is where it was asked for.
"""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from tests.conftest import run_torchgil

linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux promises of descriptors and limits")

# What scripts do to their process. "report" is the folder of the files that are asked for.
SCRIPTS = {
    "changes its folder": "import os; os.mkdir('sub'); os.chdir('sub')",
    "deletes its folder": "import os, shutil; os.mkdir('sub'); os.chdir('sub'); shutil.rmtree(os.getcwd())",
    "deletes the report's folder": "import shutil; shutil.rmtree('report')",
    "closes its streams": "import sys; print('out'); sys.stdout.close(); sys.stderr.close()",
    "closes the descriptor of stderr": "import os; print('out', flush=True); os.close(2)",
    "closes both descriptors": "import os; print('out', flush=True); os.close(1); os.close(2)",
    "closes all descriptors": "import os; print('out', flush=True); os.closerange(0, 1024)",
    "opens a file in the place of stderr": """
        import os
        os.closerange(2, 1024)
        mine = open('mine', 'w')
        import atexit
        @atexit.register
        def check():
            mine.flush()
            print(repr(open('mine').read()))
    """,
    "redirects its descriptors": """
        import os
        log = os.open('log', os.O_CREAT | os.O_RDWR)
        os.dup2(log, 1)
        os.dup2(log, 2)
        print('to the log')
    """,
    "has no streams": "import sys; sys.stdout = sys.stderr = None",
    "has streams of its own": "import io, sys; sys.stdout = sys.stderr = io.StringIO()",
    "has streams that are no streams": "import sys; sys.stderr = object()",
    "exits with a message and no stderr": "import sys; sys.stderr = None; sys.exit('a message')",
    "exits with 0": "import sys; sys.exit(0)",
    "exits with 256": "import sys; sys.exit(256)",
    "exits with -1": "import sys; sys.exit(-1)",
    "exits with a number too large": "import sys; sys.exit(2**80)",
    "exits with True": "import sys; sys.exit(True)",
    "exits with several": "raise SystemExit(1, 2)",
    "exits with what cannot be printed": """
        import sys
        class Silent:
            def __str__(self): raise ValueError
        sys.exit(Silent())
    """,
    "exits from the middle of its handlers": """
        import sys
        try:
            1 / 0
        finally:
            sys.exit(4)
    """,
    "leaves at once": "import os; print('out', flush=True); os._exit(5)",
    "ends by a signal": "import os, signal; print('out', flush=True); os.kill(os.getpid(), signal.SIGTERM)",
    "is interrupted": "print('out'); raise KeyboardInterrupt",
    "is interrupted by a signal": "import signal; print('out'); signal.raise_signal(signal.SIGINT)",
    "becomes another program": """
        import os, sys
        os.execv(sys.executable, [sys.executable, '-c', 'print("another"); raise SystemExit(6)'])
    """,
    "has a hook of its own": """
        import sys
        sys.excepthook = lambda kind, error, trace: print('hook', kind.__name__, trace.tb_lineno)
        1 / 0
    """,
    "has a hook that raises": """
        import sys
        def hook(kind, error, trace): raise LookupError('mine')
        sys.excepthook = hook
        1 / 0
    """,
    "has a hook that exits": """
        import sys
        def hook(kind, error, trace): sys.exit(7)
        sys.excepthook = hook
        1 / 0
    """,
    "raises, and a thread goes on": """
        import sys, threading, time
        def late():
            time.sleep(0.2)
            print('late', file=sys.stderr)
        threading.Thread(target=late).start()
        raise ValueError('first')
    """,
    "exits with a message, and a thread goes on": """
        import sys, threading, time
        def late():
            time.sleep(0.2)
            print('late', file=sys.stderr)
        threading.Thread(target=late).start()
        sys.exit('first')
    """,
    "leaves a daemon thread": """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print('out')
    """,
    "has exit handlers": "import atexit; atexit.register(print, 'bye'); raise SystemExit(3)",
    "has an exit handler that raises": "import atexit; atexit.register(lambda: 1 / 0)",
    "forgets its arguments": "import sys; sys.argv.clear(); sys.argv = None; sys.path.clear()",
    "leaves an alarm": """
        import signal
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # python has ended by then
    """,
    "leaves a tracer": """
        import sys
        def tracer(frame, event, arg):
            print(event)
            return tracer
        sys.settrace(tracer)
    """,
    "exits with a code that raises": """
        class Exit(SystemExit):
            @property
            def code(self): raise ValueError
        raise Exit('a message')
    """,
    "gives its files no rights": "import os; os.umask(0o777)",
    "limits its files": """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
    """,
    "limits its descriptors": """
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    """,
    "opens all the descriptors there are": """
        import os, resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        kept = []
        try:
            while True:
                kept.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
    """,
    "forks, and the child ends as it does": """
        import os
        pid = os.fork()
        if pid:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        else:
            raise SystemExit(8)
    """,
    "kills its writing end": """
        import os, signal
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(write)
        os.close(read)
    """,
}
# These leave nobody to write a report.
# What python says as it ends, and so after the report: of exit handlers, and, from 3.12 on, of an error that
# its reading of the exit code has left behind.
SAID_LATER = {"has an exit handler that raises"}
if sys.version_info >= (3, 12):
    SAID_LATER |= {"exits with a number too large", "exits with what cannot be printed"}
GONE = {"leaves at once", "ends by a signal", "becomes another program"}
# These leave no descriptor to print to.
SILENT = {"closes all descriptors", "opens a file in the place of stderr"}


def under_python(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60, cwd=folder)


@linux
@pytest.mark.parametrize("what", SCRIPTS)
def test_it_ends_as_under_python_and_the_report_is_there(what, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPTS[what]))
    folders = [tmp_path / name for name in ("python", "audit")]
    for folder in folders:
        (folder / "report").mkdir(parents=True)
    expected = under_python(path, folders[0])
    done = run_torchgil("audit", "--json", "report/r.json", path, cwd=folders[1])
    assert done.exit_code == expected.returncode, done.stderr
    assert done.stdout == expected.stdout
    report = done.stderr[len(expected.stderr) :]
    assert done.stderr[: len(expected.stderr)] == expected.stderr or what in SAID_LATER
    assert "could not be written" not in report
    written = folders[1] / "report" / "r.json"
    assert written.exists() == (what not in GONE)
    if what not in GONE:
        written.chmod(0o600)
        assert json.loads(written.read_text())["format"] == "torchgil-trace"
        assert what in SILENT or "torchgil: " in done.stderr
    for other in ("log", "mine"):
        for folder in folders:
            if (folder / other).exists():
                assert "torchgil: " not in (folder / other).read_text()


# What is looked up in __main__ when the script has ended, and where it says that it is.
LOOKS = """
import atexit, pickle, sys, threading, time
class Mine: pass
file = __file__  # which some pythons take away at the end
def look():
    print(len(pickle.dumps(Mine())), sys.argv, __name__, file, sys.path[0])
def late():
    time.sleep(0.2)
    look()
threading.Thread(target=late).start()
atexit.register(look)
"""


def started(how, folder):
    """Arguments that run `LOOKS`."""
    main = folder / "folder" / "__main__.py"
    main.parent.mkdir()
    main.write_text(LOOKS)
    if how in ("a module", "a package"):
        return ["-m", "folder.__main__" if how == "a module" else "folder"]
    if how == "a folder":
        return ["./folder"]
    if how in ("an archive", "an archive without its ending"):
        path = folder / ("archive.zip" if how == "an archive" else "archive")
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(main, "__main__.py")
    elif how == "compiled":
        path = folder / "script.pyc"
        py_compile.compile(str(main), str(path))
    else:
        (folder / "links").mkdir()
        path = folder / "links" / "script.py"
        path.symlink_to(main)
    return [path.relative_to(folder)]


@linux
@pytest.mark.parametrize(
    "how",
    [
        "a module",
        "a package",
        "a folder",
        "an archive",
        "an archive without its ending",
        "compiled",
        "a link",
    ],
)
def test_whatever_python_can_run_runs_and_stays_main_to_the_end(how, tmp_path):
    arguments = [*started(how, tmp_path), "--its", "own"]
    expected = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    done = run_torchgil("run", "--gil-priority", *arguments, cwd=tmp_path)
    assert (done.exit_code, done.stdout, done.stderr) == (0, expected.stdout, "")
    assert len(done.stdout.splitlines()) == 2


@linux
def test_a_script_has_the_names_that_python_gives_it(tmp_path):
    (tmp_path / "script.py").write_text(
        "print({name: str(globals()[name])[:9] for name in sorted(globals())})"
    )
    expected, done = [
        subprocess.run(
            [sys.executable, *command, "script.py"], capture_output=True, text=True, timeout=60, cwd=tmp_path
        ).stdout
        for command in ([], ["-m", "torchgil", "run", "--gil-priority"])
    ]
    assert done == expected


@linux
def test_a_module_that_raises_or_is_not_there_says_so_as_under_python(tmp_path):
    (tmp_path / "raises.py").write_text("1 / 0")
    for module in ("raises", "nowhere"):
        command = [sys.executable, "-m", module]
        expected = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        done = run_torchgil("run", "--gil-priority", "-m", module, cwd=tmp_path)
        assert (done.exit_code, done.stderr) == (expected.returncode, expected.stderr)


@linux
@pytest.mark.parametrize(
    "does",
    [
        "import sys; sys.setrecursionlimit(40)",
        "import sys; sys.path.clear()",
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 20, resource.RLIM_INFINITY))",
        # Half of it is in no font, which matplotlib warns of.
        "import warnings; warnings.simplefilter('error'); name = '\u4e2d\u6587'",
        "name = '$\\\\bad{x$'",  # no formula
    ],
)
def test_a_picture_is_drawn_whatever_the_script_leaves_and_calls_its_threads(does, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "script.py").write_text(
        f"""
name = "thread"
{does}
import threading
from torch.profiler import record_function
def work():
    with record_function(name):
        threading.Event().wait(0.2)
thread = threading.Thread(target=work, name=name)
thread.start()
thread.join()
"""
        if "name =" in does
        else does
    )
    done = run_torchgil("audit", "--plot", "p.png", "script.py", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@linux
@pytest.mark.parametrize(
    "what", ["changes its folder", "closes its streams", "is interrupted", "exits with -1"]
)
@pytest.mark.parametrize("command", ["watch", "run"])
def test_so_it_does_under_the_other_commands(command, what, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPTS[what]))
    folders = [tmp_path / name for name in ("python", "torchgil")]
    for folder in folders:
        folder.mkdir()
    expected = under_python(path, folders[0])
    options = ["--json", "r.json"] if command == "watch" else ["--gil-priority"]
    done = run_torchgil(command, *options, path, cwd=folders[1])
    assert (done.exit_code, done.stdout) == (expected.returncode, expected.stdout), done.stderr
    assert done.stderr.startswith(expected.stderr)
    if command == "watch":
        assert json.loads((folders[1] / "r.json").read_text())["holds"] == []


@linux
@pytest.mark.parametrize("command", ["audit", "watch"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_is_gone_costs_what_it_would_have_read(command, stream, tmp_path):
    """Python ends with 120 where stdout could not be flushed, and so does the script."""
    (tmp_path / "script.py").write_text("import sys; print('out'); sys.exit(0)")
    module = [sys.executable, "-m", "torchgil", command, "--json", "r.json"]
    codes = []
    for program in ([sys.executable], module):
        read, write = os.pipe()
        os.close(read)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
        env = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([*program, "script.py"], **streams, cwd=tmp_path, timeout=120, env=env)
        os.close(write)
        codes.append(done.returncode)
    assert codes == [120 if stream == "stdout" else 0] * 2
    assert (tmp_path / "r.json").exists()


def test_a_report_that_cannot_be_written_is_said_and_the_others_are(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("import os; os.rename('there', 'gone'); open('there', 'w')")
    (tmp_path / "there").mkdir()
    arguments = ("--json", "there/r.json", "--trace", "t.json", path)
    done = run_torchgil("audit", *arguments, cwd=tmp_path)
    assert done.exit_code == 1
    assert f"torchgil: {tmp_path}/there/r.json could not be written: " in done.stderr
    assert (tmp_path / "t.json").exists()
    assert "MainThread" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-events", "0"], "a whole number from 1 to 4294967296 is expected, got '0'"),
        (["--max-events", "5e6"], "a whole number from 1 to 4294967296 is expected, got '5e6'"),
        (["--top", "-1"], "a whole number from 0 is expected, got '-1'"),
        (["--fail-if-held", "4000s"], "at most 3600s, got 4000s"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused_before_the_script_runs(arguments, says, tmp_path):
    (tmp_path / "script.py").write_text("print('it ran')")
    done = run_torchgil("audit", *arguments, "script.py", cwd=tmp_path)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert says in done.stderr


def test_two_dashes_end_the_options(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print(sys.argv)")
    done = run_torchgil("audit", "--top", "0", "--", "script.py", "--", "-x", cwd=tmp_path)
    assert (done.exit_code, done.stdout) == (0, "['script.py', '--', '-x']\n"), done.stderr
