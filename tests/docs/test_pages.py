"""README and the pages of docs/: the Python in them runs and prints what it says; commands and links exist.

A page's Python snippets run in their order in one process. What stands behind `print(...)  # ` is compared
with what is printed, numbers aside. A comment `<!-- before the next snippet: ... -->` is Python that a reader
is told about in words.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import torchgil
from torchgil._build import C

from ..conftest import run_in_child, run_torchgil

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(
    r"^```python\n(.*?)^```$|^<!-- before the next snippet:\n(.*?)-->$", re.MULTILINE | re.DOTALL
)
# Ray's, which has a test of its own, and one that is a class of the reader's.
NOT_ALONE = ("@serve.deployment", "def factory():")


def snippets(page: Path) -> list[str]:
    found = [code or setup for code, setup in SNIPPET.findall(page.read_text())]
    return [code for code in found if not code.startswith(NOT_ALONE)]


def named(path: Path) -> str:
    return path.name


def without_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", text)


def promised(code: str) -> list[str]:
    return [
        without_numbers(said.strip()) for said in re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=named)
def test_the_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path):
    code = "\n".join(snippets(page))
    # `await` stands in a coroutine, and with it all that follows.
    program = f"""
        import ast, asyncio, inspect, os, sys
        os.chdir({str(tmp_path)!r})
        code = compile({code!r}, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names = {{"__name__": "__main__"}}
        running = eval(code, names)
        if inspect.iscoroutine(running):
            asyncio.run(running)
    """
    printed = [without_numbers(line) for line in run_in_child(program).stdout.splitlines()]
    for said in promised(code):
        start = said.split(":")[0] if said not in printed else said
        assert any(line == said or line.startswith(start) for line in printed), (said, printed)
        while printed and not printed[0].startswith(start):
            printed.pop(0)
        printed.pop(0)


def test_a_snippet_that_does_not_run_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 / 0)  # 1\n```\n")
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        test_the_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path)
    page.write_text("```python\nprint('holds')  # releases\n```\n")
    with pytest.raises(AssertionError):
        test_the_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path)


def commands(text: str) -> set[str]:
    """Each `torchgil ...`, `make ...` and `python FILE ...` of a page, in a block or within a line."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [re.sub(r"\s+", " ", inline) for inline in re.findall(r"`([^`]+)`", prose)]
    return {line for line in lines if re.match(r"(torchgil [a-z]|make [a-z]|python \S+\.py)", line)}


ALL = {command: page for page in PAGES for command in commands(page.read_text())}


@pytest.fixture(scope="module")
def help_of():
    kept: dict[str, str] = {}

    def ask(command: str) -> str:
        if command not in kept:
            kept[command] = run_torchgil(command, "--help").stdout
        return kept[command]

    return ask


@pytest.mark.parametrize("command", sorted(ALL))
def test_a_command_of_a_page_exists(command, help_of):
    program, what, *rest = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{what}:", (ROOT / "Makefile").read_text(), re.MULTILINE), ALL[command]
    elif program == "python":
        assert (ROOT / what).exists(), ALL[command]
    else:
        assert help_of(what).startswith("usage: torchgil"), ALL[command]
        ours = rest[
            : next((i for i, a in enumerate(rest) if a == "-m" or a.endswith((".py", "SCRIPT"))), len(rest))
        ]
        for option in (a.split("=")[0] for a in ours if a.startswith("--")):
            assert option in help_of(what), f"{ALL[command].name}: {command}"


def test_a_command_that_does_not_exist_is_found():
    assert commands("```\ntorchgil nosuch --option  # why\n```\nand `make nosuch`") == {
        "torchgil nosuch --option",
        "make nosuch",
    }


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_link_to_a_file_leads_to_one(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path = link.split("#")[0]
        if path and re.fullmatch(r"[\w./-]+\.(md|py|png|json|cpp)", path):
            assert (page.parent / path).exists(), link


def test_the_reference_has_every_public_name():
    reference = (ROOT / "docs/api.md").read_text()
    shown = set(re.findall(r"^\.\. auto\w+:: torchgil\.([\w.]+)$", reference, re.MULTILINE))
    ops = {f"released.{name}" for name in dir(C.released) if not name.startswith("_")}
    policies = {"released", "held", "adaptive"}
    assert {*torchgil.__all__, *ops} - {"__version__", "metrics", *policies} <= shown
    assert "metrics.export" in shown


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="the site needs pip install 'torchgil[docs]'",
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-b",
        "html",
        "-d",
        tmp_path / "trees",
        ROOT / "docs",
    ]
    done = subprocess.run([*command, tmp_path / "site"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "gil_priority" in (tmp_path / "site" / "api.html").read_text()


def test_the_site_has_every_page():
    index = (ROOT / "docs/index.md").read_text()
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages == {line for line in index.splitlines() if re.fullmatch(r"[a-z_]+", line)}
