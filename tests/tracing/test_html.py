"""What a notebook shows: tables and a picture, well formed, without scripts, for dark and light pages."""

from __future__ import annotations

import re
import threading
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

import torchgil
from tests.tracing.loads import busy_in_python, threads
from torchgil.compare._contenders import Contender
from torchgil.compare._measure import Figures
from torchgil.compare._run import Result
from torchgil.tracing import _timeline as timeline

NAME = "<b>&\"'"  # of a thread: what would break a page
VOID = {"br", "img"}


class Checker(HTMLParser):
    """Fails where tags are not closed in order; keeps all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == [], page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        assert not any("http" in (value or "") for name, value in attrs if name != "xmlns")
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report() -> torchgil.tracing.Report:
    with torchgil.trace() as t:
        thread = threading.Thread(target=torchgil.released.spin, args=(0.02,), name=NAME)
        thread.start()
        torchgil.held.spin(0.01)
        torch.add(torch.ones(2), 1)
        thread.join()
    return t.report()


def test_a_report_has_its_tables_and_its_picture(report) -> None:
    page = Checker(report._repr_html_())
    assert {"table", "svg", "rect"} <= page.tags
    assert "script" not in page.tags
    for words in ("MainThread", NAME, "aten::add", "longest hold", "held", "preempted"):
        assert words in page.text
    assert str(report).splitlines()[0] in page.text


def test_the_picture_shows_each_state_where_it_was(report) -> None:
    (svg,) = re.findall(r"<svg.*?</svg>", report._repr_html_(), re.DOTALL)
    root = ElementTree.fromstring(svg)
    fills = [rect.get("fill") for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    colours = [colour for _, _, colour in timeline.STATES.values()]
    assert fills[-4:] == colours  # what they mean
    assert colours[0] in fills[:-4]  # held
    assert colours[1] in fills[:-4]  # free
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(rect.get("width")) > 0
        assert 0 <= float(rect.get("x")) <= float(root.get("width"))


def test_nothing_sets_a_colour_of_text_or_a_ground(report) -> None:
    for page in (report._repr_html_(), torchgil.audit(len, "")._repr_html_()):
        styles = " ".join(re.findall(r'style="([^"]*)"', page))
        assert not re.search(r"(^|[;\s])color:", styles)
        assert set(re.findall(r"background:([^;\"]*)", styles)) <= {"none"}
        assert set(re.findall(r'<text [^>]*fill="([^"]*)"', page)) == {"currentColor"}


def test_an_audit_shows_its_verdict() -> None:
    audit = torchgil.audit(torchgil.released.spin, 0.01)
    page = Checker(audit._repr_html_())
    assert "releases: 9" in page.text or "releases: 100" in page.text
    assert "svg" in page.tags


def test_a_long_hold_shows_its_line_and_stack() -> None:
    with torchgil.Watchdog(on_hold=lambda hold: None) as watchdog:
        torchgil.held.spin(0.3)
    hold = watchdog.holds[0]
    page = Checker(hold._repr_html_())
    assert str(hold).split(" in ")[0] in page.text
    assert "torchgil.held.spin(0.3)" in page.text


def test_a_comparisons_result_shows_its_figures_or_its_error() -> None:
    figures = Figures(1.0, 10.0, 0.1, 0.2, 500.0, None, 0, 0, 0.0)
    contender = Contender("threads", 2, 1, nogil=True)
    page = Checker(Result(contender, (figures, figures))._repr_html_())
    assert contender.name in page.text
    assert "requests_per_s" in page.text
    assert "pss_mb" not in page.text
    assert "went <wrong>" in Checker(Result(contender, (), "went <wrong>")._repr_html_()).text


def test_many_threads_and_long_traces_make_no_huge_page() -> None:
    with torchgil.trace() as t, threads(40, lambda: busy_in_python(0.05), "busy"):
        time.sleep(0)
    assert len(t.report()._repr_html_()) < 2_000_000


@pytest.mark.peer
def test_a_notebook_runs_and_shows_it(tmp_path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat", reason="pip install nbformat")
    pytest.importorskip("ipykernel", reason="pip install ipykernel")
    cells = [
        "import torchgil, torch\nwith torchgil.trace() as t:\n    torch.add(torch.ones(2), 1)\nt.report()",
        "torchgil.audit(torchgil.released.spin, 0.01)",
        "with torchgil.Watchdog(on_hold=lambda hold: None) as w:\n    torchgil.held.spin(0.3)\nw.holds[0]",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in notebook.cells:
        (shown,) = [output for output in cell.outputs if output.output_type == "execute_result"]
        Checker(shown.data["text/html"])
        assert shown.data["text/plain"]
