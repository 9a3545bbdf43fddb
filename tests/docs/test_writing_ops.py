"""docs/writing_ops.md does what it says: what works, works; what hangs or aborts, hangs or aborts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ..support.compiling import compile_extension, needs_compiler
from .snippets import SNIPPETS, TUTORIAL, Snippet, of, read, same, unit

pytestmark = needs_compiler

OPTIONAL = {"nanobind": "nanobind", "cython": "Cython"}
# Where snippets that cannot be tried here are from, and why they cannot.
MISSING = {
    where: f"{module} is not installed: pip install 'torchgil[test]'"
    for where, module in OPTIONAL.items()
    if importlib.util.find_spec(module) is None
}
STABLE = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "stable" / "library.h"
if "TORCH_BOX" not in STABLE.read_text():
    MISSING["stable"] = f"torch {torch.__version__} has no TORCH_BOX; 2.11 has"
IN_SESSION = ("session", "stable", "nanobind", "cython", "ctypes")

# One process, one namespace: runs the snippets in their order, writes what each printed.
SESSION = """
import contextlib, io, json, sys, traceback
sources, results = json.load(open(sys.argv[1])), []
namespace = {"__name__": "__main__"}
for source in sources:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(source, namespace)
        except BaseException:
            traceback.print_exc(file=printed)
    results.append(printed.getvalue())
    json.dump(results, open(sys.argv[2], "w"))
"""


def nanobind(folder: Path) -> None:
    root = Path(importlib.util.find_spec("nanobind").origin).parent
    source = folder / "snippets_nanobind.cpp"
    source.write_text(f'#include "{root}/src/nb_combined.cpp"\n' + unit("nanobind"))
    includes = [str(root / "include"), str(root / "ext" / "robin_map" / "include")]
    compile_extension(source, "-DNDEBUG", "-fno-strict-aliasing", "-fvisibility=hidden", includes=includes)


def cython(folder: Path) -> None:
    source = folder / "snippets_cython.pyx"
    source.write_text("# cython: language_level=3\n" + "\n".join(s.text for s in of("cython", "")))
    subprocess.run([sys.executable, "-m", "cython", str(source)], check=True, timeout=120)
    compile_extension(source.with_suffix(".c"), "-DCYTHON_COMPRESS_STRINGS=0")


def cpp(where: str, name: str, folder: Path, **options) -> None:
    source = folder / f"{name}.cpp"
    source.write_text(unit(where))
    compile_extension(source, **options)


def ctypes(folder: Path) -> None:
    source = folder / "snippets_ctypes.c"
    source.write_text("".join(s.text for s in of("c", "ctypes")))
    compile_extension(source, suffix=".so")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every extension of the tutorial lies, compiled."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "burn.h").write_text("".join(s.text for s in of("c", "burn")))
    (folder / "snippets_folder.py").write_text(f"path = {str(folder)!r}\n")
    with ThreadPoolExecutor(2) as pool:  # as many compilers as a small machine has cores
        made = [
            pool.submit(cpp, "torch", "snippets_torch", folder, link_torch=True),
            pool.submit(cpp, "plain", "snippets", folder),
            pool.submit(ctypes, folder),
        ]
        if "stable" not in MISSING:
            made.append(pool.submit(cpp, "stable", "snippets_stable", folder, link_torch=True, suffix=".so"))
        made += [pool.submit(globals()[where], folder) for where in OPTIONAL if where not in MISSING]
        for each in made:
            each.result()
    return folder


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), *(p for p in sys.path if p)])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "TORCH_EXTENSIONS_DIR": str(folder / "notebooks"),
        "MAX_JOBS": "1",
    }


@pytest.fixture(scope="module")
def printed(folder):
    """What each snippet of the session printed."""
    snippets = [s for s in SNIPPETS if s.language == "python" and s.where in IN_SESSION]
    runnable = [s for s in snippets if s.where not in MISSING]
    (folder / "session.json").write_text(json.dumps([s.text for s in runnable]))
    command = [sys.executable, "-c", SESSION, folder / "session.json", folder / "results.json"]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=250)
    results = json.loads((folder / "results.json").read_text()) if done.returncode == 0 else None
    assert results is not None, f"the session failed: {done}"
    return dict(zip(runnable, results, strict=True))


@pytest.mark.parametrize(
    "snippet", [s for s in SNIPPETS if s.language == "python" and s.where in IN_SESSION], ids=str
)
def test_what_works(printed, snippet):
    if snippet.where in MISSING:
        pytest.skip(MISSING[snippet.where])
    assert same(snippet.expected, printed[snippet]), (
        f"printed:\n{printed[snippet]}expected:\n{snippet.expected}"
    )


def runs_alone(snippet: Snippet, folder: Path) -> tuple[str, str]:
    """How its process ends, and what it printed.

    `never ends`: everything that it should print is there, and it still runs some seconds later.
    """
    lines, _ = promised(snippet)
    output = folder / f"{snippet.line}.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", snippet.text],
            env=environment(folder),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        limit = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < limit:
            if all(line in output.read_text() for line in lines):
                limit = min(limit, time.monotonic() + 4)
            time.sleep(0.05)
        code = process.poll()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the child of its fork
            process.wait()
    ended = "never ends" if code is None else f"exit code {code}" if code >= 0 else "killed"
    return ended, output.read_text()


def promised(snippet: Snippet) -> tuple[list[str], str]:
    """The lines that a snippet prints, and how its process ends."""
    *lines, end = snippet.expected.splitlines()
    until = re.search(r"until (\d+)\.(\d+)", snippet.where)
    if until and sys.version_info[:2] >= (int(until[1]), int(until[2])):
        return lines[:1], "[exit code 0]"
    return lines, end


@pytest.fixture(scope="module")
def alone(folder):
    """How each snippet that runs alone ended, and what it printed; most of their time they wait."""
    snippets = of("python", "alone")
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(snippets, pool.map(lambda s: runs_alone(s, folder), snippets), strict=True))


@pytest.mark.parametrize("snippet", of("python", "alone"), ids=str)
def test_what_runs_alone(alone, snippet):
    lines, end = promised(snippet)
    ended, text = alone[snippet]
    assert [line for line in lines if line not in text] == [], text
    if end == "[fails]":
        assert ended not in ("exit code 0", "never ends"), text
    else:
        assert f"[{ended}]" == end, text


def test_the_table_of_bindings_says_what_was_seen():
    table = dict(re.findall(r"^\| ([^|]+) \| (holds|releases) \|", TUTORIAL.read_text(), re.MULTILINE))
    seen = {}
    for snippet in SNIPPETS:
        seen |= dict(re.findall(r"^(.+): (holds|releases)$", snippet.expected, re.MULTILINE))
    assert table == seen
    assert len(table) == 10


def test_every_snippet_is_run():
    """And none has a word behind its language that nothing here knows."""
    known = {("python", w) for w in (*IN_SESSION, "alone")}
    known |= {("cpp", w) for w in ("plain", "torch", "stable", "nanobind")}
    known |= {("c", "burn"), ("c", "ctypes"), ("cython", "")}
    assert {(s.language, " ".join(s.where.split()[:1])) for s in SNIPPETS} == known
    assert all(s.expected for s in SNIPPETS if s.language == "python")


def test_the_comparison_can_fail():
    """The positive control: another output, and a process that ends where it should hang."""
    assert not same("holds\n", "releases\n")
    assert same("The engine...\nlast\n", "The engine was called.\nlast\n")
    snippet = read("```python alone\nprint(1)\n```\n\n```text\n1\n[never ends]\n```\n")[0]
    assert snippet.expected == "1\n[never ends]\n"
