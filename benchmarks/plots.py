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
import inline
import kept
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
    for name, result in results.items():
        if changed := kept.changed_since(name, result):
            date, command = result["machine"]["date"], kept.command(name, result)
            print(f"{name}.json is of {date}; changed since: {', '.join(changed)}; anew: {command}")
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
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    found = {path: filled(path.read_text(), results) for path in pages}
    findings = DOCS / "findings.md"
    found[findings] = findings_page.filled(found[findings], findings_page.load(), pinned_torch())
    found[DOCS / "benchmarks.md"] = page(results)
    return found


def filled(text: str, results: Mapping[str, Any]) -> str:
    """The text with its tables and its marked figures as these results have them."""

    def fill(found: re.Match[str]) -> str:
        name, part = found["name"], found["part"]
        if name not in results:
            return found[0]  # not measured yet
        lines = TABLES[name + part](results[name]["rows"])
        if kept.changed_since(name, results[name]):
            lines += [
                "",
                f"Measured on {results[name]['machine']['date']}; what it measures has changed since.",
            ]
        return "\n".join([found["start"], *lines, found["end"]])

    between = r"(?P<start><!-- (?P<name>\w+)\.json(?P<part>(: \w+)?) -->)\n.*?(?P<end><!-- end -->)"
    return inline.filled(re.sub(between, fill, text, flags=re.DOTALL), results)


TOOLS = {"none": "nothing", "after a trace": "nothing any more, after a trace"}


def page(results: Mapping[str, Any]) -> str:
    lines = [
        "# Budgets, and what was measured",
        "",
        "Made by `python benchmarks/plots.py` from `benchmarks/results/*.json` alone; `make bench` measures",
        "all anew. Each figure is the median of fresh processes, with the extremes; figures compare within",
        "one benchmark's run only. What each benchmark times, and whom that is unfair to, stands at its top.",
        "Unstable is what some round met and another missed. Older is what was measured before the last",
        "change of the code that it measures.",
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
        words = ["met" if met(budget, figure) else "**missed**"]
        words += ["unstable"] * (not stable(budget, figure))
        words += ["older"] * bool(kept.changed_since(budget.benchmark, results[budget.benchmark]))
        cells = [
            budget.what,
            f"{sign} {number(budget.limit, budget.unit)}",
            f"{median}{extremes}",
            ", ".join(words),
            f"`bench_{budget.benchmark}.py`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## A forward of each model, each way", ""]
    lines += forward_tables(results["forward"]["rows"])
    lines += ["", "## Measured on", "", "| results | made by | machine | date | |", "|---|---|---|---|---|"]
    for name, result in results.items():
        m = result["machine"]
        peers = [f"{peer} {version}" for peer, version in m.get("peers", {}).items() if version]
        cells = [
            f"`{name}.json`",
            f"`{kept.command(name, result)}`",
            ", ".join(
                [
                    m["cpu"],
                    f"{m['usable_cores']} cores",
                    f"Python {m['python']}",
                    f"torch {m['torch']}",
                    *peers,
                ]
            ),
            m["date"],
            kept.OLDER if kept.changed_since(name, result) else "",
        ]
        lines.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
