"""What knows the GIL works without torch, and never imports it; the rest says what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

import torchgil

from .conftest import run_in_child

# As if torch, and the half of torchgil that was built for it, were not installed.
HIDDEN = "import sys; sys.modules['torch'] = sys.modules['torchgil._torch'] = None\n"
NEEDS_TORCH = {
    *("released", "held", "adaptive", "Latch", "adaptive_threshold", "set_adaptive_threshold"),
    *("nogil", "load_package", "ThreadPool", "Batcher", "BatcherClosed", "QueueFull", "Forward", "Session"),
}
VERSION_1 = Path(__file__).parent / "tracing" / "report_version_1.json"
NEEDS_NONE = set(torchgil.__all__) - NEEDS_TORCH

USES = {
    "trace": """
        with torchgil.trace() as t:
            zlib.compress(bytes(1_000_000))
        report = t.report()
        assert report.threads[0].releases and not report.ops and not report.notes, report
        assert "MainThread" in str(report) and "<svg" in report._repr_html_()
    """,
    "audit": """
        assert torchgil.audit(zlib.compress, bytes(20_000_000)).verdict == "releases"
        assert torchgil.audit(sorted, range(300_000)).verdict == "holds"
    """,
    "Report": """
        import os
        with torchgil.trace() as t:
            zlib.compress(bytes(1_000_000))
        os.chdir(os.environ["TMPDIR"])
        t.report().save_json("r.json")
        report = torchgil.Report.load("r.json")
        os.remove("r.json")
        assert report == t.report() and report.segments == t.report().segments
        assert str(report) == str(t.report())
    """,
    "Watchdog": """
        with torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None) as watchdog:
            sum(range(20_000_000))
        (hold,) = watchdog.holds
        assert (hold.thread_name, hold.lineno) == ("MainThread", LINE), hold
    """,
    "GilMonitor": """
        with torchgil.GilMonitor(interval=0.001) as monitor:
            sum(range(20_000_000))
        assert monitor.stats().threads["MainThread"] > 0.3, monitor.stats()
    """,
    "gil_priority": """
        @torchgil.gil_priority()
        def compress():
            return zlib.compress(bytes(1_000_000))
        stop = threading.Event()
        busy = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
        busy.start()
        try:
            compress()
            if torchgil._priority.priority_unavailable() is None:
                before = torchgil._priority.C.priority_answers()
                for _ in range(20):
                    compress()
                assert torchgil._priority.C.priority_answers() > before
        finally:
            stop.set()
            busy.join()
    """,
    "switch_interval": """
        with torchgil.switch_interval(1e-4):
            assert round(sys.getswitchinterval(), 6) == 1e-4
    """,
    "usable_cores": "assert torchgil.usable_cores() >= 1",
    "get_include": "assert torchgil.get_include()",
    "metrics": """
        from prometheus_client import CollectorRegistry, generate_latest
        registry = CollectorRegistry()
        with torchgil.GilMonitor() as monitor, torchgil.Watchdog(threshold=1) as watchdog:
            torchgil.metrics.export(monitor, "mine", registry)
            torchgil.metrics.export(watchdog, "mine", registry)
            assert b"torchgil_watchdog_running" in generate_latest(registry)
    """,
}


def use(name: str) -> str:
    code = "import sys, threading, time, zlib, torchgil\n" + USES[name].replace("\n        ", "\n")
    before, hold, _ = code.partition("sum(range(")
    return code.replace("LINE", str(before.count("\n") + 1)) if hold else code


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("hidden", [True, False], ids=["without torch", "with torch installed"])
def test_it_works_and_never_imports_torch(name: str, hidden: bool) -> None:
    after = "\nassert sys.modules.get('torch') is None and sys.modules.get('torchgil._torch') is None"
    run_in_child((HIDDEN.replace("\n", ";") if hidden else "") + use(name) + after, fresh=True)


@pytest.mark.parametrize("name", sorted(NEEDS_TORCH))
def test_what_needs_torch_says_so_and_what_mends_it(name: str) -> None:
    code = f"import torchgil\ntry:\n    torchgil.{name}\nexcept ImportError as error:\n    print(error)"
    said = run_in_child(HIDDEN + code, fresh=True).stdout
    assert "needs torch, which cannot be imported here" in said
    assert "pip install --no-build-isolation --force-reinstall --no-deps ." in said


def test_intra_op_threads_say_so_as_the_block_begins() -> None:
    code = "import torchgil\nwith torchgil.intra_op_threads(1):\n    pass"
    child = run_in_child(HIDDEN + code, fresh=True, check=False)
    assert "torch" in child.stderr.splitlines()[-1]
    assert child.exit_code == 1


def test_each_public_name_is_on_one_of_the_sides() -> None:
    assert {*USES, "Audit", "LongHold", "Hang", "intra_op_threads", "__version__"} == NEEDS_NONE


@pytest.mark.parametrize("command", ["audit", "watch", "run --gil-priority"])
def test_commands_that_run_a_script_work_without_torch(command: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, zlib\nzlib.compress(bytes(10_000_000))\nsum(range(20_000_000))\n"
        "assert sys.modules.get('torch') is None\nprint('it ran')\n"
    )
    code = f"{HIDDEN}from torchgil.cli import main\nsys.exit(main({[*command.split(), str(script)]!r}))"
    child = run_in_child(code, fresh=True)
    assert child.stdout == "it ran\n"
    said = {"audit": "MainThread", "watch": "sum(range(20_000_000))", "run --gil-priority": ""}
    assert said[command] in child.stderr


@pytest.mark.parametrize("command", ["demo", "compare"])
def test_commands_that_need_torch_say_so(command: str) -> None:
    code = f"{HIDDEN}from torchgil.cli import main\nsys.exit(main([{command!r}]))"
    child = run_in_child(code, fresh=True, check=False)
    assert (child.exit_code, child.stdout) == (2, "")
    assert child.stderr.startswith(f"torchgil {command}: this part of torchgil needs torch")


def test_report_shows_a_saved_one_without_torch() -> None:
    code = f"{HIDDEN}from torchgil.cli import main\nsys.exit(main(['report', {str(VERSION_1)!r}]))"
    assert "aten::linear" in run_in_child(code, fresh=True).stdout


def test_doctor_works_without_torch(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")
    child = subprocess.run(
        [sys.executable, "-m", "torchgil", "doctor"],
        env={"PYTHONPATH": f"{tmp_path}:{torchgil.__path__[0]}/..", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child
    assert "there is no torch here: none here" in child.stdout
    assert "seen here        long holds (watchdog)" in child.stdout


def test_where_torch_is_another_than_the_one_built_for_the_trace_says_what_it_does_not_see() -> None:
    child = run_in_child(
        """
        import types, sys, torch
        built_for = types.ModuleType("torchgil._built_for")
        built_for.TORCH_VERSION, built_for.PYTHON_VERSION = "1.2.3", "%d.%d" % sys.version_info[:2]
        sys.modules["torchgil._built_for"] = built_for
        import torchgil
        with torchgil.trace() as t:
            torch.ones(2) + 1
        report = t.report()
        assert report.threads[0].releases and not report.ops
        print(report.notes)
        """
    )
    assert "torch's ops were not recorded: torchgil was built for torch 1.2.3 but torch" in child.stdout


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        ("", "none (not a version of torch: 'None'): "),
        ("__version__ = 'git-abc'", "none (not a version of torch: 'git-abc'): "),
        (None, "none (not a version of torch: 'None'): ["),
        ("raise OSError('libcudart.so: no such file')", "imported here (libcudart.so: no such file)"),
    ],
    ids=["a stub", "an odd version", "a folder", "a broken one"],
)
def test_what_is_torch_by_name_alone(torch, said, tmp_path) -> None:  # type: ignore[no-untyped-def]
    if torch is None:
        (tmp_path / "torch").mkdir()
    else:
        (tmp_path / "torch.py").write_text(torch)
    code = f"""
        import sys
        sys.path = [{str(tmp_path)!r}] + [p for p in sys.path if "site-packages" not in p]
        import torchgil
        try:
            import torch  # no error of ours
        except OSError:
            pass
        for use in (lambda: torchgil.ThreadPool, lambda: torchgil.intra_op_threads(1).__enter__()):
            try:
                use()
            except ImportError as error:
                print(error)
        """
    lines = run_in_child(code, fresh=True).stdout.splitlines()
    assert [said in line for line in lines] == [True, True], lines


def test_ops_are_attributed_where_torch_is_imported_within_the_trace() -> None:
    run_in_child(
        """
        import torchgil
        with torchgil.trace() as t:
            import torch
            torch.ones(2) + 1
        report = t.report()
        assert any(op.name == "aten::add" for op in report.ops), report
        """,
        fresh=True,
    )
