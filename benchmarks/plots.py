"""Turns benchmarks/results/*.json into docs/benchmarks.md and its picture. Measures nothing.

Every budget of the project stands in BUDGETS with where its figure is found, so that the table
says by itself which are met. The last thing that `make bench` runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
Spread = Mapping[str, float]


@dataclass(frozen=True)
class Budget:
    """One promise about speed."""

    benchmark: str
    what: str
    at_most: bool
    limit: float
    unit: str
    figure: Callable[[Any], Spread]


def row(**wanted: Any) -> Callable[[list[Any]], Any]:
    """The one row with these values."""

    def find(rows: list[Any]) -> Any:
        (found,) = [r for r in rows if all(r.get(key) == value for key, value in wanted.items())]
        return found

    return find


def scaled(spread: Spread, factor: float) -> Spread:
    return {key: spread[key] * factor for key in ("median", "min", "max")}


def ratio(rounds: list[Any], above: Callable[[Any], float], below: Callable[[Any], float]) -> Spread:
    """Median and extremes of a ratio taken round by round."""
    ratios = sorted(above(r) / below(r) for r in rounds)
    return {"median": ratios[len(ratios) // 2], "min": ratios[0], "max": ratios[-1]}


def forward(row_name: str, key: Callable[[Any], float], base: Callable[[Any], float] | None = None) -> Any:
    """A ratio of the transformer's row to another of its own figures, or to eager's of the same round."""

    def figure(rows: Any) -> Spread:
        rounds = rows["rounds"]["transformer"]
        if base is not None:
            return ratio(rounds[row_name], key, base)
        pairs = list(zip(rounds[row_name], rounds["eager"], strict=True))
        return ratio(pairs, lambda pair: key(pair[0]), lambda pair: key(pair[1]))

    return figure


def single(value: float) -> Spread:
    return {"median": value, "min": value, "max": value}


def rms_norm_slowest(rows: list[Any]) -> Spread:
    return min((r["torch_over_torchgil"][what] for r in rows for what in ("forward", "both")), key=_median)


def threads_against_processes(key: str) -> Callable[[list[Any]], Spread]:
    def figure(rows: list[Any]) -> Spread:
        threads, processes = (
            next(r for r in rows if r["contender"]["kind"] == kind and r["contender"]["nogil"] == nogil)[key]
            for kind, nogil in (("threads", True), ("processes", False))
        )
        return single(threads["median"] / processes["median"])

    return figure


def _median(spread: Spread) -> float:
    return spread["median"]


def _two_over_one(r: Any) -> float:
    return float(r["per_second"]["2"])


def _one(r: Any) -> float:
    return float(r["per_second"]["1"])


def _p50(r: Any) -> float:
    return float(r["p50_s"])


BUDGETS = [
    Budget("call_overhead", "`released.add`, 4x4, over `torch.add`", True, 1.05, "x",
           lambda rows: row(question="call", path="released.add")(rows)["ratio"]),
    Budget("call_overhead", "a release over a raw `Py_BEGIN_ALLOW_THREADS` pair", True, 1.3, "x",
           lambda rows: row(question="release", path="released's window")(rows)["ratio"]),
    Budget("call_overhead", "`adaptive.add` beside a busy Python thread, p99 over that alone", True, 3, "x",
           lambda rows: row(question="beside", path="adaptive.add")(rows)["p99_ratio"]),
    Budget("scaling", "`released.spin`, two threads over one", False, 1.95, "x",
           lambda rows: row(op="released.spin")(rows)["speedup"]),
    Budget("scaling", "`held.spin`, two threads over one", True, 1.05, "x",
           lambda rows: row(op="held.spin")(rows)["speedup"]),
    Budget("scaling", "`released.matmul`, 1500x1500, two threads over one", False, 1.9, "x",
           lambda rows: row(op="released.matmul")(rows)["speedup"]),
    Budget("rms_norm", "`rms_norm`'s speed over torch's, the slowest of 32 cases", False, 1, "x",
           rms_norm_slowest),
    Budget("tracing", "the transformer's forward traced, over untraced", True, 1.1, "x",
           lambda rows: row(question="forward", tool="torchgil.trace")(rows)["ratio"]),
    Budget("tracing", "a release and reacquire traced, over untraced", True, 150, " ns",
           lambda rows: row(question="pair")(rows)["added_ns"]),
    Budget("tracing", "the watchdog beside a program at rest", True, 1, " % of a core",
           lambda rows: scaled(row(question="watchdog", program="sleeps")(rows)["share_of_a_core"], 100)),
    Budget("forward", "`nogil`, p50 over eager's", True, 0.95, "x", forward("graph", _p50)),
    Budget("forward", "`nogil`, two threads over one", False, 1.9, "x",
           forward("graph", _two_over_one, _one)),
    Budget("forward", "`nogil` beside a busy thread, p50 less its p50 alone", True, 10, " ms",
           lambda rows: ratio(rows["rounds"]["transformer"]["graph"],
                              lambda r: 1e3 * (r["busy_default_p50_s"] - r["p50_s"]), lambda _: 1)),
    Budget("forward", "the same at a switch interval of 100 us, over its p50 alone", True, 1.5, "x",
           forward("graph", lambda r: r["busy_100us_p50_s"], _p50)),
    Budget("forward", "`nogil`, peak memory over eager's", True, 1.1, "x",
           forward("graph", lambda r: r["peak_mib"])),
    Budget("forward", "`nogil(backend=\"inductor\")`, two threads over one", False, 1.9, "x",
           forward("inductor", _two_over_one, _one)),
    Budget("forward", "the interpreter's own cost of an instruction", True, 150, " ns",
           lambda rows: single(1e9 * rows["about"]["overhead"]["view_interpreter_s"])),
    Budget("batching", "`Batcher` from threads, rows over a loop of single calls", False, 3, "x",
           lambda rows: row(row="torchgil threads")(rows)["ratio"]),
    Budget("batching", "`Batcher` from asyncio, rows over a loop of single calls", False, 3, "x",
           lambda rows: row(row="torchgil asyncio")(rows)["ratio"]),
    Budget("batching", "a lone request over the direct call, p50", True, 100, " us",
           lambda rows: row(row="lone request")(rows)["submit_added_p50_us"]),
    Budget("threads_vs_processes", "`nogil` threads over processes, requests per second", False, 1.2, "x",
           threads_against_processes("requests_per_s")),
    Budget("threads_vs_processes", "`nogil` threads over processes, memory", True, 0.6, "x",
           threads_against_processes("pss_mb")),
    Budget("threads_vs_processes", "`nogil` threads over processes, start-up", True, 0.1, "x",
           threads_against_processes("start_up_s")),
]  # fmt: skip


def main() -> None:
    results = load()
    (DOCS / "benchmarks.md").write_text(page(results))
    picture(measure(results), DOCS / "images" / "benchmarks.png")


def load() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}


def measure(results: Mapping[str, Any]) -> list[tuple[Budget, Spread]]:
    return [(budget, budget.figure(results[budget.benchmark]["rows"])) for budget in BUDGETS]


def met(budget: Budget, figure: Spread) -> bool:
    return figure["median"] <= budget.limit if budget.at_most else figure["median"] >= budget.limit


def number(value: float, unit: str) -> str:
    return f"{value:.3g}{unit}" if unit == "x" or abs(value) < 100 else f"{value:.0f}{unit}"


def page(results: Mapping[str, Any]) -> str:
    lines = [
        "# Budgets, and what was measured",
        "",
        "Made by `python benchmarks/plots.py` from `benchmarks/results/*.json` alone; `make bench` measures",
        "all anew. Each figure is the median of fresh processes, with the extremes; figures compare within",
        "one benchmark's run only. What each benchmark times, and whom that is unfair to, stands at its top.",
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
        cells = [
            budget.what,
            f"{sign} {number(budget.limit, budget.unit)}",
            f"{number(figure['median'], budget.unit)}{extremes}",
            "met" if met(budget, figure) else "**missed**",
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


def forward_tables(rows: Any) -> list[str]:
    lines = [
        "Beside: beside a busy Python thread, at the default switch interval of 5 ms and at 100 us. "
        f"A sleeping thread woke {rows['about']['wakeup_p50_s'] * 1e6:.0f} us late (p50).",
    ]
    for model, ways in rows["table"].items():
        lines += [
            "",
            f"| {model} | p50 ms | p99 ms | calls/s, 1 thread | 2 threads | 4 threads "
            "| beside, 5 ms: p50 ms | 100 us | monitor ticks/s | peak MiB |",
            "|---|" + "--:|" * 9,
        ]
        for way, figures in ways.items():
            cells = [
                cell(figures, "p50_s", 1e3, 2),
                cell(figures, "p99_s", 1e3, 2),
                *(cell(figures["per_second"], n, 1, 0) for n in ("1", "2", "4")),
                cell(figures, "busy_default_p50_s", 1e3, 2),
                cell(figures, "busy_100us_p50_s", 1e3, 2),
                cell(figures, "ticks_per_second", 1, 0),
                cell(figures, "peak_mib", 1, 1),
            ]
            lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def cell(figures: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    return f"{figures[key]['median'] * factor:.{digits}f}" if key in figures else ""


def picture(measured: list[tuple[Budget, Spread]], path: Path) -> None:
    """How far on the right side of its budget each figure is: 1 is the budget, further right is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 0.34 * len(measured) + 1.2), layout="constrained")
    for at, (budget, spread) in enumerate(reversed(measured)):
        values = [spread[key] for key in ("min", "median", "max")]
        scores = [budget.limit / max(v, 1e-9) if budget.at_most else v / budget.limit for v in values]
        color = "#2a7f62" if met(budget, spread) else "#b3392f"
        axes.plot([min(scores), max(scores)], [at, at], color=color, linewidth=3, alpha=0.4)
        axes.plot(scores[1], at, "o", color=color)
        axes.annotate(
            number(spread["median"], budget.unit),
            (scores[1], at),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=7,
            ha="center",
        )
    labels = [
        f"{b.what.replace('`', '')}  {'<=' if b.at_most else '>='} {number(b.limit, b.unit)}"
        for b, _ in measured
    ]
    axes.set_yticks(range(len(measured)), labels[::-1], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([0.1, 0.5, 1, 2, 5], ["10x off", "2x off", "the budget", "2x better", "5x better"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
