"""The example programs run, and show what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ..support.compiling import needs_compiler

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def output_of(example: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", EXAMPLES / example, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=True).stdout


def test_who_holds_it_names_the_line_and_the_gap_it_made():
    printed = output_of("who_holds_it.py")
    gaps = dict(re.findall(r"^(\w+) +the ticker's longest gap: (\d+) ms$", printed, re.MULTILINE))
    assert gaps.keys() == {"releases", "holds", "python"}
    assert "in raw_decode" in printed
    assert "ticker" in printed


def test_the_event_loop_example_prints_how_late_it_is_each_way():
    lines = output_of("event_loop.py").splitlines()
    assert [re.sub(r" +p50 +\d+\.\d\d ms +p99 +\d+\.\d\d ms$", "", line) for line in lines] == [
        "alone",
        "beside a busy thread",
        "the same, with gil_priority()",
    ]


def test_the_pytest_example_passes_and_its_control_fails_as_expected():
    installed = any(ep.name == "torchgil" for ep in metadata.entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "torchgil.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", *plugin]
    done = subprocess.run(
        [*command, "--gil-report", EXAMPLES / "test_keeps_releasing.py"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "3 passed, 1 xfailed" in done.stdout, done.stdout


@needs_compiler
@pytest.mark.slow
def test_an_op_of_ones_own_releases_as_its_policy_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    verdicts = {
        (policy, elements): verdict
        for elements, policy, verdict in map(str.split, output_of("own_op.py").splitlines()[-6:])
    }
    assert verdicts.pop(("released", "20,000")) in ("releases", "partly")  # a window of some 50 us
    assert verdicts == {
        ("held", "20,000"): "holds",
        ("adaptive", "20,000"): "holds",
        ("held", "4,000,000"): "holds",
        ("released", "4,000,000"): "releases",
        ("adaptive", "4,000,000"): "releases",
    }


@needs_compiler
@pytest.mark.slow
def test_a_packages_calls_hold_with_torchs_loader_and_release_with_ours():
    printed = output_of("package_threads.py")
    assert re.search(r"^torch's loader +holds ", printed, re.MULTILINE), printed
    assert re.search(r"^load_package +releases ", printed, re.MULTILINE), printed


@pytest.mark.peer
def test_users_of_one_language_model_get_its_tokens_from_sessions():
    pytest.importorskip("transformers", reason="pip install transformers")
    printed = output_of("generate.py", "--users", "3", "--tokens", "8")
    assert re.findall(r"^user (\d): .*, (\w+) tokens of generate\(\)$", printed, re.MULTILINE) == [
        ("0", "the"),
        ("1", "the"),
        ("2", "the"),
    ], printed


@pytest.mark.peer
def test_an_unmodified_streamer_gets_the_same_text_with_priority():
    pytest.importorskip("transformers", reason="pip install transformers")
    printed = output_of("stream_ui.py")
    assert printed.splitlines()[-1] == "the same text", printed


def test_each_example_says_first_what_one_learns_from_it():
    for path in EXAMPLES.glob("*.py"):
        first = path.read_text().split("\n")[0]
        assert re.fullmatch(r'"""[A-Z].*[.:`]', first), path.name
