"""The pictures of README.md and docs/, drawn by plots.py from kept results. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from budgets import Budget, Spread, met, number

# Colours that the colour-blind can tell apart (Okabe and Ito 2008).
HELD, RELEASED, PRIORITY, ADAPTIVE, EAGER = "#d55e00", "#009e73", "#cc79a7", "#0072b2", "#777777"
EDGE = 20.0  # how many times off, or better, the picture of the budgets shows at most
COLOURS = {
    "priority": PRIORITY,
    "onnx_priority": PRIORITY,
    "aoti": HELD,
    "graph": RELEASED,
    "inductor": RELEASED,
    "frozen": RELEASED,
}


Extremes = Mapping[str, float]  # median, min, max


def busy(ways: Mapping[str, Any], titles: Mapping[str, str], path: Path) -> None:
    """A forward's median alone and beside a busy Python thread, and a monitor's turns (it wants 2,000)."""
    shown = [way for way in titles if way in ways]
    figure, (left, right) = _subplots(1, 2, len(shown), width_ratios=(4, 1), sharey=True)
    _alone_and_beside(
        left,
        [
            (titles[way], ways[way]["p50_s"], ways[way]["busy_default_p50_s"], COLOURS.get(way, EAGER))
            for way in shown
        ],
    )
    left.set_xlabel("one forward, ms (median)")
    for at, way in enumerate(reversed(shown)):
        colour, ticks = COLOURS.get(way, EAGER), ways[way]["ticks_per_second"]["median"]
        right.barh(at, ticks, color=colour, height=0.5)
        _label(right, f"{ticks:,.0f}", ticks, at, colour)
    _title(left, "A forward alone (open) and beside one busy Python thread (filled)")
    _title(right, "what others get")
    right.set_xlabel("turns per second")
    right.set_xlim(right=2600)
    figure.savefig(path, dpi=150)


def cuda(rows: Mapping[str, Any], titles: Mapping[str, str], gpu: str, path: Path) -> None:
    """From the call to the answer on the host, alone and beside a busy Python thread."""
    figure, axes = _subplots(1, 1, len(titles))
    _alone_and_beside(
        axes,
        [
            (
                title,
                rows[row]["alone_answered_p50_s"],
                rows[row]["busy_answered_p50_s"],
                PRIORITY if "priority" in row else RELEASED if row == "nogil" else EAGER,
            )
            for row, title in titles.items()
        ],
    )
    axes.set_xlabel(f"from the call to the answer on the host, ms (median); {gpu}")
    _title(axes, "A model on a GPU, alone (open) and beside one busy Python thread (filled)")
    figure.savefig(path, dpi=150)


def crossover(table: Mapping[str, Any], path: Path) -> None:
    """What two threads do together, by the length of an op, under each policy."""
    titles = {
        "busy_5ms": "beside a busy Python thread",
        "busy_100us": "the same, switch interval 100 us",
        "two_busy_5ms": "beside two busy Python threads",
        "twice": "two threads that make these calls",
    }
    colours = {"held": HELD, "released": RELEASED, "adaptive": ADAPTIVE, "priority": PRIORITY}
    figure, panels = _subplots(2, 2, 12, sharex=True, sharey=True)
    for axes, (which, title) in zip(panels, titles.items(), strict=True):
        for policy, sizes in table.items():
            ops = [op for op in sizes.values() if which in op]
            if not ops:
                continue
            x = [table["held"][n]["alone_us"]["median"] for n in sizes]
            spreads = [[op[which][end] for op in ops] for end in ("min", "median", "max")]
            name = "released, gil_priority()" if policy == "priority" else policy
            axes.plot(x, spreads[1], "o-", markersize=4, color=colours[policy], label=name)
            axes.fill_between(x, spreads[0], spreads[2], color=colours[policy], alpha=0.15, linewidth=0)
        for share, name in ((1, "one core"), (2, "two cores")):
            axes.axhline(share, color=EAGER, linewidth=0.8, linestyle=":", zorder=0)
            at_edge = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            axes.annotate(name, (0, share), (2, 2), fontsize=7, **at_edge)
        axes.set_xscale("log")
        axes.set_xticks([10, 100, 1000, 10_000], ["10 us", "100 us", "1 ms", "10 ms"])
        _title(axes, title)
    for axes in panels[2:]:
        axes.set_xlabel("one matmul, alone")
    for axes in panels[::2]:
        axes.set_ylabel("done by all threads, in shares\nof what each does alone")
    panels[0].set_ylim(0, 2.3)
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)


def scaling(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """How much more several threads do than one, by their number, and what their number would give."""
    figure, axes = _subplots(1, 1, 8)
    for row in rows:
        policy, _, op = row["op"].partition(".")
        colour, style = {"held": HELD, "released": RELEASED}[policy], "-" if op == "spin" else "--"
        counts = [int(name.removeprefix("speedup_")) for name in row if name.startswith("speedup_")]
        spreads = [row[f"speedup_{n}"] for n in counts]
        axes.plot(counts, [s["median"] for s in spreads], "o", linestyle=style, markersize=4, color=colour)
        low, high = ([s[end] for s in spreads] for end in ("min", "max"))
        axes.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
        at = (counts[-1], spreads[-1]["median"])
        below = row["op"] == "held.spin"  # two lines that lie on each other
        axes.annotate(
            f"{policy} {op} {at[1]:.1f}x",
            at,
            (6, -9 if below else -3 if policy == "released" else 3),
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
    axes.plot(counts, counts, color=EAGER, linewidth=0.8, linestyle=":", zorder=0)
    axes.annotate(
        "as many times as there are threads", (8, 8), (-150, 6), textcoords="offset points", fontsize=7
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_yticks(counts, [f"{n}x" for n in counts])
    axes.minorticks_off()
    axes.set_xlim(right=counts[-1] * 1.4)
    axes.set_xlabel("threads that make the same calls, on 16 cores")
    axes.set_ylabel("work done, over one thread")
    _title(axes, "Several threads, with the GIL held and released")
    figure.savefig(path, dpi=150)


def dots(
    rows: Sequence[tuple[str, Extremes, bool]],  # name, figure, in colour
    title: str,
    unit: str,
    path: Path,
    limit: tuple[float, str],
    digits: int = 1,
) -> None:
    """A figure of each row with its extremes, some in colour, against a line."""
    figure, axes = _subplots(1, 1, len(rows))
    for at, (_, spread, ours) in enumerate(reversed(rows)):
        colour = RELEASED if ours else EAGER
        axes.plot([spread["min"], spread["max"]], [at, at], color=colour, linewidth=3, alpha=0.4)
        axes.plot(spread["median"], at, "o", color=colour, markersize=8)
        _label(axes, f"{spread['median']:.{digits}f}x", spread["max"], at, colour)
    axes.set_yticks(range(len(rows)), [name.replace("`", "") for name, _, _ in reversed(rows)])
    at, name = limit
    axes.axvline(at, color=EAGER, linewidth=0.8, linestyle=":", zorder=0)
    axes.annotate(name, (at, len(rows) - 0.6), (3, 0), textcoords="offset points", fontsize=7)
    axes.set_xlabel(unit)
    axes.set_ylim(top=len(rows) - 0.3)
    axes.set_xlim(right=max(at, *(spread["max"] for _, spread, _ in rows)) * 1.1)
    _title(axes, title)
    figure.savefig(path, dpi=150)


def _subplots(rows: int, columns: int, lines: float, **options: Any) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(10, 0.5 * lines + 1.1), layout="constrained", squeeze=False, **options
    )
    panels = list(axes.flat)
    for each in panels:
        each.spines[["top", "right"]].set_visible(False)
    return figure, panels if len(panels) > 1 else panels[0]


def _alone_and_beside(axes: Any, rows: Sequence[tuple[str, Extremes, Extremes, str]]) -> None:
    for at, (_, alone_s, beside_s, colour) in enumerate(reversed(rows)):
        alone, beside = alone_s["median"] * 1e3, beside_s["median"] * 1e3
        axes.plot([alone, beside], [at, at], color=colour, linewidth=3, alpha=0.4, zorder=1)
        axes.plot(alone, at, "o", color=colour, markerfacecolor="white", markersize=8)
        axes.plot(beside, at, "o", color=colour, markersize=8)
        text = f"{beside:,.{0 if beside >= 9.95 else 1 if beside >= 0.95 else 2}f} ms"
        _label(axes, text, max(alone, beside), at, colour, 9)
    axes.set_yticks(range(len(rows)), [title.replace("`", "") for title, *_ in reversed(rows)])
    axes.set_xscale("log")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    low = min(alone["median"] for _, alone, _, _ in rows) * 1e3
    ticks = [ms for ms in ticks if ms >= low / 2]
    axes.set_xticks(ticks, [f"{ms:,}" for ms in ticks])
    axes.minorticks_off()
    axes.set_ylim(top=len(rows) - 0.3)
    axes.set_xlim(right=max(beside["median"] for _, _, beside, _ in rows) * 4e3)
    axes.axvline(5, color=EAGER, linewidth=0.8, linestyle=":", zorder=0)
    axes.annotate(
        "switch interval, 5 ms", (5, len(rows) - 0.6), (3, 0), textcoords="offset points", fontsize=7
    )


def _label(axes: Any, text: str, x: float, y: float, colour: str, gap: int = 6) -> None:
    axes.annotate(text, (x, y), (gap, 0), textcoords="offset points", va="center", color=colour)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, weight="bold")


def budgets(measured: list[tuple[Budget, Spread]], path: Path) -> None:
    """How far on the right side of its budget each figure is: 1 is the budget, further right is better."""
    figure, axes = _subplots(1, 1, 0.68 * len(measured))
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
    figure.savefig(path, dpi=150)


def compare(rows: list[Any], path: Path) -> None:
    """Throughput against memory, as `torchgil compare --plot` draws it."""
    from torchgil.compare import Contender, Figures, Result, plot

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
