"""The published figures are those of the kept results, and say so where the code is another by now."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Made whole from results; the last is to be written anew with its figures (issue 31).
OTHERS = {"compatibility.md", "benchmarks.md"}

# What is no measurement: what the code, the interpreter or an example sets.
SET = {
    "5 ms",  # the default switch interval, and from where on a hold is long
    "90 %",  # from where on a call releases
    "10 %",  # up to where it holds
    "1.5 ms",  # an example's call, the tick of its other thread, and
    "0.5 ms",
    "10 ms",  # twice the switch interval: the least that a watchdog can tell
    "10 us",  # an example's work
    "100 us",  # the threshold of `adaptive`, and the short interval that the tables speak of
    "200 us",  # after which threads with priority ask each other, and
    "0.2 ms",
    "1 ms",  # a turn where all releases are short, which are those
    "20 us",  # of less than that
    "20 ms",  # the longest hold of ours that a test allows; an example's Python
    "0.1 ms",  # the shortest collection that is counted
    "2 MB",  # from the bytes an event takes, as saved
    "101 MB",  # the weights of an example
    "18 MB",
    "100 MB",
    "95 %",  # below which `make coverage` fails
    "1 MB",  # a test's input
}
FIGURE = re.compile(r"(?<![\w.,`])\d[\d,]*(?:\.\d+)?(?:x\b(?!\d)| ?%| ?(?:ms|us|ns|MB|MiB|GB)\b| s\b)")


@pytest.fixture
def plots(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import plots

    return plots


def without_age(page: str) -> str:
    """A checkout whose history was cut or rewritten cannot say what has changed since a result was kept."""
    page = re.sub(r"\n\nMeasured on [\d-]+; what it measures has changed since\.", "", page)
    return re.sub(r" +", " ", re.sub(r"(, )?\bolder( than its code)?\b", "", page))


def test_what_the_documents_show_is_what_was_kept(plots):
    results = plots.load()
    for path, text in plots.documents(results).items():
        assert without_age(path.read_text()) == without_age(text), f"{path.name}: run benchmarks/plots.py"
    named = {budget.benchmark for budget in plots.BUDGETS}
    assert named <= results.keys()
    for budget, figure in plots.measure(results):
        assert figure["min"] <= figure["median"] <= figure["max"], budget.what


def test_a_figure_that_has_drifted_is_put_right(plots):
    results = plots.load()
    right = plots.inline.INLINE["tracing: pair"](results["tracing"]["rows"])
    mark = "<!-- tracing: pair -->"
    text = f"A pair takes 1,234.5{mark} ns, or 1{mark}x; {mark} alone is none, and 7 another."
    assert plots.filled(text, results) == text.replace("1,234.5", right).replace("or 1", f"or {right}")
    dated = "(2020-01-01, older than its code<!-- tracing: date -->, 1999-01-01<!-- tracing: date -->)"
    when = plots.kept.when("tracing", results["tracing"])
    assert plots.filled(dated, results) == f"({when}<!-- tracing: date -->, {when}<!-- tracing: date -->)"


def test_each_mark_names_a_figure_and_each_figure_is_marked_somewhere(plots):
    marked = [mark for page in PAGES for mark in plots.inline.marks(page.read_text())]
    known = {*plots.inline.INLINE, *(f"{name}: date" for name in plots.load())}
    assert set(marked) <= known
    assert set(plots.inline.INLINE) <= set(marked)


def paragraphs(text):
    """Each with the table that it introduces; without code, and without what plots.py makes."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!-- (?:\w+\.json|findings: ).*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"\d[\d.,]*<!-- .*? -->(?:x| %| [mun]?s)?", "", re.sub(r"`[^`\n]*`", "``", text))
    return re.sub(r"\n\n(?=\|)", "\n", text).split("\n\n")


def by_hand(text):
    """The figures that were typed without saying when they were measured."""
    undated = [part for part in paragraphs(text) if not re.search(r"\b20\d\d-\d\d-\d\d\b", part)]
    return [figure for part in undated for figure in FIGURE.findall(part) if figure not in SET]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in OTHERS], ids=lambda page: page.name)
def test_a_figure_is_made_from_results_or_says_of_which_day_it_is(page):
    found = by_hand(page.read_text())
    assert not found, (
        "typed by hand: mark each as CONTRIBUTING.md says, or put the command and the date into its paragraph"
    )


def test_a_figure_that_was_typed_is_found():
    assert by_hand("It takes 7 ms, 1.25x of 3 %.\n\n| a | 40 ns |\n\nAt 5 ms, 2.13 of 12 threads.") == [
        *("7 ms", "1.25x", "3 %", "40 ns"),
    ]
    assert by_hand("It took 7 ms (`make bench`, 2026-11-27):\n\n| a | 40 ns |") == []
    assert by_hand("It took 7.5<!-- tracing: pair --> ms.\n\n```\n8 ms\n```\n\n`9 ms`") == []


def test_each_file_of_results_has_one_command_that_is_there(plots):
    results = plots.load()
    assert results.keys() <= plots.kept.KEPT.keys()
    for name, kept in plots.kept.KEPT.items():
        program, script, *_ = kept.command.split()
        assert program == "python"
        assert (ROOT / script).exists(), name
        assert [path for path in kept.code if not (ROOT / path).exists()] == [], name
    commands = [plots.kept.command(name, result) for name, result in results.items()]
    assert len(set(commands)) == len(commands)


def git(folder, *arguments):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_results_are_older_than_their_code_once_that_is_changed_and_only_then(plots, tmp_path, monkeypatch):
    kept = plots.kept
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    monkeypatch.setitem(kept.KEPT, "it", kept.Kept("python it.py", ("code", "more/code.py")))
    git(tmp_path, "init", "-q")
    (tmp_path / "code").mkdir()

    def commit(name, text="x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", name)
        kept._git.cache_clear()
        return git(tmp_path, "rev-parse", "--short", "HEAD")

    measured = commit("code/one.py")
    result = {"machine": {"commit": measured, "date": "2026-01-02"}}
    assert kept.when("it", result) == "2026-01-02"
    commit("another.py")
    assert kept.changed_since("it", result) == ()
    commit("more/code.py")
    assert kept.changed_since("it", result) == ("more/code.py",)
    commit("code/two.py")
    assert kept.changed_since("it", result) == ("code", "more/code.py")
    assert kept.when("it", result) == f"2026-01-02, {kept.OLDER}"
    # A commit that is gone, as after a rebase: no later than when the file was kept.
    gone = {"machine": {"commit": "0123456", "date": "2026-01-02"}}
    assert kept.changed_since("it", gone) == ()
    commit("benchmarks/results/it.json")
    assert kept.changed_since("it", gone) == ()
    commit("code/one.py", "y")
    assert kept.changed_since("it", gone) == ("code",)
    kept._git.cache_clear()


def test_where_a_peer_is_missing_the_old_results_stay(plots, tmp_path, monkeypatch, capsys):
    import argparse

    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    peers = harness.versions("pytest", "no-such-peer")
    assert peers == {"pytest": pytest.__version__, "no-such-peer": None}
    with pytest.raises(SystemExit) as left:
        harness.stay_where_missing(argparse.Namespace(json=None), peers)
    assert left.value.code == 0  # `make bench` goes on
    assert "no-such-peer missing: pip install 'torchgil[bench]'" in capsys.readouterr().out
    harness.stay_where_missing(argparse.Namespace(json=str(tmp_path / "x.json")), peers)
    harness.stay_where_missing(argparse.Namespace(json=None), harness.versions("pytest"))


def test_a_forward_is_measured_without_onnx_runtime_where_that_is_missing(
    plots, tmp_path, monkeypatch, capsys
):
    import argparse

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # which the benchmark would set
    import bench_forward

    here, gone = {"onnxruntime": "1", "onnxscript": "1"}, {"onnxruntime": "1", "onnxscript": None}
    asked = argparse.Namespace(rows=["eager", "onnx", "onnx_priority", "frozen"], json="x.json")
    assert bench_forward.with_peers(asked, here) == asked.rows
    assert bench_forward.with_peers(asked, gone) == ["eager", "frozen"]
    assert "not measured: ONNX Runtime; pip install 'torchgil[bench]'" in capsys.readouterr().out
    asked.json = None  # the kept results have its rows
    with pytest.raises(SystemExit):
        bench_forward.with_peers(asked, gone)
    asked.rows = ["eager"]
    assert bench_forward.with_peers(asked, gone) == ["eager"]


def test_results_say_by_which_command_and_beside_which_peers_they_were_made(plots, tmp_path, monkeypatch):
    import harness

    script = ROOT / "benchmarks" / "bench_tracing.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--rounds", "9", "--json", str(ROOT / "build/x.json")])
    path = harness.save("tracing", [], str(tmp_path / "x.json"), peers=harness.versions("pytest"))
    machine = json.loads(path.read_text())["machine"]
    assert machine["command"] == "python benchmarks/bench_tracing.py --rounds 9 --json build/x.json"
    assert machine["peers"] == {"pytest": pytest.__version__}


def test_every_peer_is_pinned_in_the_extra_that_has_them_all():
    extra = re.search(r"^bench = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    pinned = dict(re.findall(r'"([\w-]+)==([\d.]+)"', extra))
    assert pinned.keys() == {"py-spy", "gilknocker", "batched", "async-batcher", "onnxruntime", "onnxscript"}
    asked = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("bench_*.py"))
    for peer in pinned:
        assert f'"{peer}"' in asked, peer
