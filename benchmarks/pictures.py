"""The pictures of README.md and docs/, drawn by plots.py from kept results. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from budgets import Budget, Spread, met, number

# Colours that the colour-blind can tell apart (Okabe and Ito 2008).
HELD, RELEASED, PRIORITY, EAGER = "#d55e00", "#009e73", "#cc79a7", "#777777"
EDGE = 20.0  # how many times off, or better, the picture of the budgets shows at most
COLOURS = {"priority": PRIORITY, "aoti": HELD, "graph": RELEASED, "inductor": RELEASED}


def busy(ways: Mapping[str, Any], titles: Mapping[str, str], path: Path) -> None:
    """A forward's median alone and beside a busy Python thread, and a monitor's turns (it wants 2,000)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [way for way in titles if way in ways]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 0.5 * len(shown) + 1.1), width_ratios=(4, 1), sharey=True, layout="constrained"
    )
    for at, way in enumerate(reversed(shown)):
        colour = COLOURS.get(way, EAGER)
        alone, beside = (ways[way][key]["median"] * 1e3 for key in ("p50_s", "busy_default_p50_s"))
        left.plot([alone, beside], [at, at], color=colour, linewidth=3, alpha=0.4, zorder=1)
        left.plot(alone, at, "o", color=colour, markerfacecolor="white", markersize=8)
        left.plot(beside, at, "o", color=colour, markersize=8)
        text = f"{beside:,.0f} ms" if beside >= 9.95 else f"{beside:.1f} ms"
        left.annotate(
            text, (max(alone, beside), at), (9, 0), textcoords="offset points", va="center", color=colour
        )
        ticks = ways[way]["ticks_per_second"]["median"]
        right.barh(at, ticks, color=colour, height=0.5)
        right.annotate(
            f"{ticks:,.0f}", (ticks, at), (4, 0), textcoords="offset points", va="center", color=colour
        )
    left.set_yticks(range(len(shown)), [titles[way].replace("`", "") for way in reversed(shown)])
    left.set_xscale("log")
    ticks_ms = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    left.set_xticks(ticks_ms, [f"{ms:,}" for ms in ticks_ms])
    left.minorticks_off()
    left.set_xlim(right=max(ways[way]["busy_default_p50_s"]["median"] for way in shown) * 4e3)
    left.set_xlabel("one forward, ms (median)")
    left.set_title(
        "A forward alone (open) and beside one busy Python thread (filled)",
        loc="left",
        fontsize=10,
        weight="bold",
    )
    left.axvline(5, color="#777777", linewidth=0.8, linestyle=":", zorder=0)
    left.annotate(
        "switch interval, 5 ms", (5, len(shown) - 0.6), (3, 0), textcoords="offset points", fontsize=7
    )
    right.set_title("what others get", loc="left", fontsize=10, weight="bold")
    right.set_xlabel("turns per second")
    right.set_xlim(right=2600)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def budgets(measured: list[tuple[Budget, Spread]], path: Path) -> None:
    """How far on the right side of its budget each figure is: 1 is the budget, further right is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 0.34 * len(measured) + 1.2), layout="constrained")
    for at, (budget, spread) in enumerate(reversed(measured)):
        values = [spread[key] for key in ("min", "median", "max")]
        # A difference can be negative, and then no ratio says how good it is: it stands at the edge.
        scores = [
            budget.limit / max(v, budget.limit / EDGE) if budget.at_most else v / budget.limit for v in values
        ]
        scores = [min(max(score, 1 / EDGE), EDGE) for score in scores]
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
    axes.set_xlim(1 / EDGE / 1.2, EDGE * 1.2)
    ticks = {1 / EDGE: "20x off", 0.2: "5x", 0.5: "2x", 1: "budget", 2: "2x", 5: "5x", EDGE: "20x better"}
    axes.set_xticks([*ticks], [*ticks.values()])
    axes.margins(y=0.02)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def compare(rows: list[Any], path: Path) -> None:
    """Throughput against memory, as `torchgil compare --plot` draws it."""
    from torchgil.cli.compare import plot
    from torchgil.compare.contenders import Contender
    from torchgil.compare.measure import Figures
    from torchgil.compare.run import Result

    def visit(row: Any, which: str) -> Figures:
        figures = {field.name: row.get(field.name, 0) for field in fields(Figures)}
        return Figures(**{name: f[which] if isinstance(f, dict) else f for name, f in figures.items()})

    # Three visits that have the row's median and extremes.
    shown = [
        Result(Contender(**row["contender"]), tuple(visit(row, which) for which in ("min", "median", "max")))
        for row in rows
        if "error" not in row
    ]
    plot(shown, str(path))
