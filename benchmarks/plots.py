"""Turns benchmarks/results/*.json into the tables and pictures of README.md and docs/. Measures nothing.

The last thing that `make bench` runs. A document's table stands between two comments that name its results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import findings_page
import pictures
from budgets import BUDGETS, Budget, Spread, met, number, stable
from harness import RESULTS
from tables import BATCHING, FORWARDS, ON_CUDA, TABLES, forward_tables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def main() -> None:
    results = load()
    for path, text in documents(results).items():
        path.write_text(text)
    images = DOCS / "images"
    pictures.busy(results["forward"]["rows"]["table"]["transformer"], FORWARDS, images / "busy.png")
    pictures.budgets(measure(results), images / "benchmarks.png")
    on_cuda = results["cuda"]
    pictures.cuda(on_cuda["rows"], ON_CUDA, on_cuda["machine"]["gpu"], images / "cuda.png")
    pictures.crossover(results["crossover"]["rows"], images / "crossover.png")
    pictures.dots(
        [
            (r["op"], r["speedup_2"], not r["op"].startswith(("held", "python")))
            for r in results["scaling"]["rows"]
            if "speedup_2" in r
        ],
        "Two threads on two cores, over one thread",
        "times as much done in the same time (median and extremes of five processes)",
        images / "scaling.png",
        limit=(2, "two cores"),
        digits=2,
    )
    pictures.scaling(results["scaling_16_cores"]["rows"], images / "scaling_16_cores.png")
    pictures.dots(
        [
            (TOOLS.get(r["tool"], r["tool"]), r["ratio"], r["tool"].startswith("torchgil"))
            for r in results["tracing"]["rows"]
            if r["question"] == "forward"
        ],
        "A forward of the transformer while it is watched, over unwatched",
        "times as long (median and extremes of five processes)",
        images / "tracing.png",
        limit=(1, "as unwatched"),
        digits=2,
    )
    found = {r["row"]: r for r in results["batching"]["rows"]}
    pictures.dots(
        [
            (title, found[name]["ratio"], name.startswith("torchgil"))
            for name, title in BATCHING.items()
            if name != "singles"
        ],
        "Rows per second, over a loop of single calls",
        "times as many (median and extremes)",
        images / "batching.png",
        limit=(1, "a loop of single calls"),
    )
    pictures.compare(results["threads_vs_processes"]["rows"], images / "compare.png")


def load() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def pinned_torch() -> str:
    """The version that the project is developed with."""
    found = re.search(r"torch==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert found
    return found[1]


def measure(results: Mapping[str, Any]) -> list[tuple[Budget, Spread]]:
    return [(budget, budget.figure(results[budget.benchmark]["rows"])) for budget in BUDGETS]


def documents(results: Mapping[str, Any]) -> dict[Path, str]:
    """Every document that shows figures, as these results have it."""
    return {
        DOCS / "benchmarks.md": page(results),
        ROOT / "README.md": filled(ROOT / "README.md", results),
        DOCS / "serving.md": filled(DOCS / "serving.md", results),
        DOCS / "gil_priority.md": filled(DOCS / "gil_priority.md", results),
        DOCS / "proving.md": filled(DOCS / "proving.md", results),
        DOCS / "alternatives.md": filled(DOCS / "alternatives.md", results),
        DOCS / "findings.md": findings_page.filled(
            (DOCS / "findings.md").read_text(), findings_page.load(), pinned_torch()
        ),
    }


def filled(path: Path, results: Mapping[str, Any]) -> str:
    def fill(found: re.Match[str]) -> str:
        name, part = found["name"], found["part"]
        table = "\n".join(TABLES[name + part](results[name]["rows"]))
        return f"{found['start']}\n{table}\n{found['end']}"

    between = r"(?P<start><!-- (?P<name>\w+)\.json(?P<part>(: \w+)?) -->)\n.*?(?P<end><!-- end -->)"
    return re.sub(between, fill, path.read_text(), flags=re.DOTALL)


TOOLS = {"none": "nothing", "after a trace": "nothing any more, after a trace"}


def page(results: Mapping[str, Any]) -> str:
    lines = [
        "# Budgets, and what was measured",
        "",
        "Made by `python benchmarks/plots.py` from `benchmarks/results/*.json` alone; `make bench` measures",
        "all anew. Each figure is the median of fresh processes, with the extremes; figures compare within",
        "one benchmark's run only. What each benchmark times, and whom that is unfair to, stands at its top.",
        "Unstable is what some round met and another missed.",
        "",
        "![each figure against its budget](images/benchmarks.png)",
        "",
        "| what | budget | measured | | benchmark |",
        "|---|--:|--:|---|---|",
    ]
    for budget, figure in measure(results):
        low, high = (number(figure[end], "") for end in ("min", "max"))
        extremes = f" ({low} to {high})" if figure["min"] != figure["max"] else ""
        sign = "<=" if budget.at_most else ">="
        median = number(figure["median"], budget.unit)
        if median == number(budget.limit, budget.unit) and not met(budget, figure):
            median = f"{figure['median']:.4g}{budget.unit}"
        cells = [
            budget.what,
            f"{sign} {number(budget.limit, budget.unit)}",
            f"{median}{extremes}",
            ("met" if met(budget, figure) else "**missed**") + ", unstable" * (not stable(budget, figure)),
            f"`bench_{budget.benchmark}.py`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## A forward of each model, each way", ""]
    lines += forward_tables(results["forward"]["rows"])
    lines += ["", "## Measured on", ""]
    lines += [
        f"- `{name}.json`: {m['cpu']}, {m['usable_cores']} cores, Python {m['python']}, torch {m['torch']}, "
        f"{m['date']}"
        for name, m in ((name, result["machine"]) for name, result in results.items())
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
