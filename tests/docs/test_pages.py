"""README and the other pages: the Python in them runs and prints what it says; commands and links exist.

A page's Python snippets run in their order in one process. What stands behind `print(...)  # ` is compared
with what is printed, measured numbers aside; behind a colon a remark may follow. A comment
`<!-- before the next snippet: ... -->` is Python that a reader is told about in words.
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
from torchgil._torch_half import C

from ..conftest import run_in_child, run_torchgil

ROOT = Path(__file__).parent.parent.parent
IN_ROOT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*IN_ROOT, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tests").glob("*.md"))]
SNIPPET = re.compile(
    r"^```python\n(.*?)^```$|^<!-- before the next snippet:\n(.*?)-->$", re.MULTILINE | re.DOTALL
)
# Ray's and transformers', which have tests of their own, and one that is a class of the reader's.
NOT_ALONE = ("@serve.deployment", "# needs transformers", "def factory():")


def snippets(page: Path) -> list[str]:
    found = [code or setup for code, setup in SNIPPET.findall(page.read_text())]
    return [code for code in found if not code.startswith(NOT_ALONE)]


def named(path: Path) -> str:
    return path.name


def without_measured(text: str) -> str:
    """Without fractions, and without what has a unit; a count that is no measurement stays."""
    return re.sub(r"\d+\.\d+|\d+(?= (?:[um]?s\b|%|looks\b))", "#", text)


def promised(code: str) -> list[str]:
    return [said.strip() for said in re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)]


def is_said(line: str, said: str) -> bool:
    line, said = without_measured(line), without_measured(said)
    return said == line or said.startswith(f"{line}: ")


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
    printed = run_in_child(program).stdout.splitlines()
    left = iter(printed)
    for said in promised(code):
        assert any(is_said(line, said) for line in left), (said, printed)


def test_a_snippet_that_does_not_run_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 / 0)  # 1\n```\n")
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        test_the_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path)
    for code in ("print('holds')  # releases", "print('a')  # b\nprint('b')  # a"):
        page.write_text(f"```python\n{code}\n```\n")
        with pytest.raises(AssertionError):
            test_the_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path)


def test_what_is_printed_is_compared_and_what_is_measured_is_not():
    for line, said in (
        ("holds: 0.1 % of 39 ms free (0 releases)", "holds: 0.0 % of 406 ms free (0 releases)"),
        ("False", "False: nobody else could run to open it"),
        ("3 0 releases", "3 0 releases"),
    ):
        assert is_said(line, said), said
    for line, said in (
        ("7 9 releases", "3 0 releases"),
        ("holds: 0.1 % of 39 ms free (4 releases)", "holds: 0.0 % of 406 ms free (0 releases)"),
        ("holds: nothing else", "holds: 0.0 % of 406 ms free (0 releases)"),
        ("holds", "releases"),
        ("F", "False: nobody else could run to open it"),
    ):
        assert not is_said(line, said), said


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


def prose(page: Path) -> str:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code.group().replace("](", "] ("), text)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#{1,6} +(.*?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """The links to a file that is not there, or to a heading that its page has not."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue  # another site
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page):
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_test_that_a_page_names_is_there(page):
    named_here = re.findall(r"`((?:[\w-]+/)*test_\w+\.py)(?:::\w+)?`", page.read_text())
    folders = (ROOT, ROOT / "tests", ROOT / "examples/my_op", ROOT / "examples")
    assert [file for file in named_here if not any((f / file).exists() for f in folders)] == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A heading, with `code`\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    good = "[a](other.md#a-heading-with-code) [b](#here) [c](https://x.org/#y) `[d](e)`\n\n## Here\n"
    dead = ["other.md#no-heading", "#nowhere", "nothing.md", "nothing/", "nothing.rst#here"]
    page.write_text(good + " ".join(f"[x]({link})" for link in dead))
    assert dead_links(page) == dead


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
