"""torchgil doctor: what it finds is so, and what it advises follows from it."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import run_in_child
from torchgil import doctor
from torchgil._wakeup import wakeup_latency
from torchgil.cli import main
from torchgil.doctor import _torch_facts as torch_facts


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return doctor.examine()


def test_reports_what_is_so(facts: dict[str, Any]) -> None:
    assert facts["torch"] == torch.__version__
    assert sys.version.startswith(facts["python"])
    assert facts["intra_op_threads"] == torch.get_num_threads()
    assert facts["inter_op_threads"] == torch.get_num_interop_threads()
    assert facts["switch_interval_s"] == sys.getswitchinterval()
    assert 1 <= facts["cores_usable"] <= (facts["cores_affinity"] or 1) <= facts["cores_online"]
    assert facts["gil"] is True
    assert 0 < facts["wakeup_p50_s"] <= facts["wakeup_p99_s"]
    assert all(Path(path).exists() for path in facts["openmp_runtimes"])
    assert facts["openmp_runtimes"], "torch on CPU brings one"


def test_says_whether_priority_can_be_had(facts: dict[str, Any]) -> None:
    assert re.search(r"gil_priority\(\) +works here", doctor.render(facts))
    ways = {True: "entry points", False: "waits for the GIL alone"}
    for seen, known_by in ways.items():
        text = doctor.render({**facts, "gil_priority_sees_own_releases": seen})
        assert f"time.sleep, sockets, locks: by their {known_by}\n" in text
    assert facts["gil_priority_sees_own_releases"] in (True, False)
    text = doctor.render({**facts, "gil_priority_unavailable": "the moon is full"})
    assert "does nothing here: the moon is full" in text


def test_each_witness_is_tried_and_works_here(facts: dict[str, Any]) -> None:
    assert facts["witnesses"] == {
        "releases and acquires of the GIL": True,
        "torch ops": True,
        "long holds (watchdog)": True,
    }


def test_leaves_no_setting_changed() -> None:
    before = torch.get_num_threads(), sys.getswitchinterval()
    doctor.examine()
    assert (torch.get_num_threads(), sys.getswitchinterval()) == before


def test_text_says_it_all(facts: dict[str, Any]) -> None:
    text = doctor.render(facts)
    for word in (
        "torch ",
        "Python",
        "usable",
        "intra-op",
        "OpenMP",
        "switch interval",
        "wake-up",
        "seen here",
    ):
        assert word in text
    assert "\x1b" not in text
    assert "NOT seen" not in text


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (
            {"intra_op_threads": 8, "cores_usable": 2},
            "oversubscribed: one op uses 8 intra-op threads, but only 2",
        ),
        ({"intra_op_threads": 2, "cores_usable": 2}, "2 of them make 4 busy threads on 2 cores"),
        ({"openmp_runtimes": ["/a/libgomp.so.1", "/b/libiomp5.so"]}, "2 OpenMP runtimes are loaded"),
        ({"wakeup_p99_s": 0.004}, "a woken thread sometimes takes 4.00 ms to run"),
        ({"gil": False}, "this Python runs without a GIL"),
        ({"witnesses": {"torch ops": False}}, "not seen here: torch ops"),
        ({"intra_op_threads": None, "torch_error": "there is no torch here"}, "there is no torch here"),
        ({"extension_error": "torchgil was built for torch 1"}, "torchgil was built for torch 1"),
    ],
)
def test_advises_where_the_facts_call_for_it(change: dict[str, Any], advice: str) -> None:
    well = {
        "cores_usable": 4,
        "intra_op_threads": 1,
        "gil": True,
        "openmp_runtimes": ["/a/libgomp.so.1"],
        "wakeup_p99_s": 0.00001,
        "witnesses": {"torch ops": True},
        "extension_error": None,
        "torch_error": None,
    }
    assert doctor.advice(well) == []
    (found,) = doctor.advice({**well, **change})
    assert found.startswith(advice) or advice in found


def test_finds_openmp_runtimes_in_a_map_and_names_each_once() -> None:
    line = "7f0000000000-7f0000001000 r-xp 00000000 fe:00 12345    "
    maps = "\n".join(
        line + path
        for path in (
            "/usr/lib/x86_64-linux-gnu/libgomp.so.1.0.0",
            "/opt/env/torch/lib/libgomp-a34b3233.so.1",
            "/opt/env/lib/libiomp5.so",
            "/opt/env/lib/libomp.so.5",
            "/opt/env/lib/libomp.so.5",
            "/opt/env/lib/libcompute.so",
            "/opt/env/lib/libopenblas.so.0",
        )
    )
    assert [Path(path).name for path in torch_facts.openmp_runtimes(maps)] == [
        "libiomp5.so",
        "libomp.so.5",
        "libgomp-a34b3233.so.1",
        "libgomp.so.1.0.0",
    ]


def test_command_writes_json_and_respects_affinity() -> None:
    core = min(os.sched_getaffinity(0))
    child = run_in_child(
        f"""
        import os, sys
        os.sched_setaffinity(0, [{core}])
        from torchgil.cli import main
        sys.exit(main(["doctor", "--json", "-"]))
        """
    )
    written = json.loads(child.stdout)
    assert (written["format"], written["version"]) == ("torchgil-doctor", 1)
    assert written["cores_usable"] == written["cores_affinity"] == 1


@pytest.fixture
def torch_version(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An environment in which another torch, or none, is found first."""
    (tmp_path / "torch.py").write_text(request.param)
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(doctor.__file__).parents[2]}"}


@pytest.mark.parametrize(
    ("torch_version", "says", "exit_code"),
    [
        (
            "__version__ = '2.14.0'; get_num_threads = get_num_interop_threads = lambda: 1",
            f"torchgil was built for torch {torch.__version__.split('+')[0]} but torch 2.14.0 is installed",
            1,
        ),
        ("raise ImportError('No module named torch')", "there is no torch here: No module named torch", 0),
        ("import os; os.abort()", "a process that imports torch ended with exit code -6", 0),
        ("raise OSError('no libc10')", "ended with exit code 1: OSError: no libc10", 0),
    ],
    indirect=["torch_version"],
)
def test_another_torch_or_none_is_said_and_the_rest_looked_at(
    torch_version: dict[str, str], says: str, exit_code: int
) -> None:
    code = "import sys; from torchgil.cli import main; sys.exit(main(['doctor']))"
    child = run_in_child(code, check=False, fresh=True, env=torch_version)
    assert child.exit_code == exit_code, str(child)
    assert says in child.stdout
    assert re.search(r"seen here +releases and acquires of the GIL\nseen here +long holds", child.stdout)


RUDE = """
    import atexit, os, subprocess, sys
    sys.stdout.write("hello ")
    for stream in sys.stdout, sys.stderr:
        stream.buffer.write(b"\\xff")
    atexit.register(print, "5")
    subprocess.Popen(["sleep", "5"])
    os.close(1)
    sys.stdout = None
    raise ImportError("only rude")
"""


def test_what_torch_does_to_the_streams_hides_no_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(textwrap.dedent(RUDE))
    monkeypatch.syspath_prepend(tmp_path)
    assert torch_facts.ask()["torch_error"] == "there is no torch here: only rude"


def test_torch_is_looked_for_where_this_process_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('that of the current folder')")
    monkeypatch.chdir(tmp_path)
    assert torch_facts.ask()["torch"] == torch.__version__


def test_a_torch_that_takes_too_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch_facts, "_LIMIT_S", 2)
    assert torch_facts.ask()["torch_error"] == "torch could not be looked at: it took more than 2 s"


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "examples:\n  torchgil doctor" in capsys.readouterr().out


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, 100_001])
def test_wakeup_latency_rejects_a_wrong_number_of_samples(samples: Any) -> None:
    with pytest.raises(ValueError, match="samples must be an integer from 1 to 100000"):
        wakeup_latency(samples)
    assert wakeup_latency(1).p50_s > 0
