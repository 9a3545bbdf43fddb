"""The demo as a picture, drawn from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchgil._pictures import save_figure

__all__ = ["draw"]

# Okabe and Ito's colours: told apart by everybody.
COLOURS = {
    "held": "#d55e00",
    "released": "#009e73",
    "adaptive": "#0072b2",
    "torch.ops": "#7f7f7f",
    "with gil_priority()": "#cc79a7",
}
INK, FAINT = "#222222", "#8a8a8a"

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#cccccc",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(demo: dict[str, Any], path: str | Path) -> None:
    """Draws sections 1 to 3.

    Args:
        demo: What Demo.to_dict() gives, or the JSON file read back.
        path: Where the picture goes; its suffix decides the format.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        # Figure and not pyplot: no window, no global state, no backend chosen for anybody else.
        from matplotlib.figure import Figure

        figure: Any = Figure(figsize=(11.5, 9.6), dpi=120, facecolor="white", layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09, w_pad=0.1, hspace=0.02)
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=(2.7, 3.1, 3.6))
        _timeline(top, demo["policies"])
        _bars(middle, demo["scaling"], demo["machine"]["usable_cores"])
        _contention(bottom, demo["contention"])
        bottom.supxlabel(_caption(demo["machine"]), x=0.99, ha="right", size=8.5, color=FAINT)
        save_figure(figure, path, dpi=figure.dpi)


def _caption(machine: dict[str, Any]) -> str:
    others = machine["other_load_cores"] or 0.0
    busy = f", other processes took {others:.1f} cores" if others >= 0.1 else ""
    return (
        f"torch {machine['torch']}, Python {machine['python']}, {machine['usable_cores']} usable cores{busy}"
    )


def _heading(figure: Any, question: str) -> None:
    figure.suptitle(question, x=0.01, ha="left", weight="bold", size=12.5)


def _timeline(figure: Any, section: dict[str, Any]) -> None:
    """Ops as bars in time, the monitor's ticks as dots above them."""
    _heading(figure, "Who gets the GIL while an op runs?")
    axes = figure.subplots()
    runs = section["runs"]
    for row, run in enumerate(reversed(runs)):
        colour = COLOURS[run["policy"]]
        for start, end in run["ops"]:
            axes.barh(row - 0.2, (end - start) * 1e3, 0.34, start * 1e3, color=colour, alpha=0.85, ec="white")
        axes.plot(
            [tick * 1e3 for tick in run["ticks"]], [row + 0.17] * len(run["ticks"]), ".", color=INK, ms=5
        )
        ticks = len(run["ticks"])
        axes.annotate(
            f"{ticks} ticks",
            (1.005, row),
            xycoords=("axes fraction", "data"),
            va="center",
            weight="bold",
            color=colour,
        )
    axes.set_yticks(range(len(runs)), [run["policy"] for run in reversed(runs)])
    axes.set_ylim(-0.5, len(runs) - 0.4)
    axes.set_xlim(0, max(run["ops"][-1][1] for run in runs) * 1e3)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ms")
    axes.set_title(
        f"bar: a matmul of {section['size']}x{section['size']}      "
        "dot: another Python thread, which wakes every millisecond, got the GIL"
    )


def _bars(figure: Any, section: dict[str, Any], cores: int) -> None:
    """Speed-up by op, policy and number of threads, with the limit that the cores set."""
    ops = list(dict.fromkeys(row["op"] for row in section["rows"]))
    _heading(figure, "Do threads help?")
    panels = figure.subplots(1, len(ops), sharey=True)
    for axes, op in zip(panels, ops, strict=True):
        rows = [row for row in section["rows"] if row["op"] == op]
        width = 0.8 / len(rows)
        for i, row in enumerate(rows):
            for group, cell in enumerate(row["cells"]):
                x = group + (i - (len(rows) - 1) / 2) * width
                axes.bar(
                    x,
                    cell["speedup"],
                    width * 0.92,
                    color=COLOURS[row["policy"]],
                    label=row["policy"] if group == 0 else None,
                )
                axes.text(
                    x,
                    cell["speedup"] - 0.05,
                    f"{cell['speedup']:.2f}",
                    ha="center",
                    va="top",
                    size=8,
                    color="white",
                )
        threads = [cell["threads"] for cell in rows[0]["cells"]]
        for group, count in enumerate(threads):  # so many threads can use so many cores
            axes.hlines(min(count, cores), group - 0.48, group + 0.48, color=INK, ls=(0, (4, 2)), lw=1.1)
        axes.set_xticks(range(len(threads)), [f"{n} thread" + "s" * (n > 1) for n in threads])
        axes.set_title(op, family="monospace")
        axes.tick_params(left=False)
    highest = max(cell["speedup"] for row in section["rows"] for cell in row["cells"])
    panels[0].set_ylim(0, 1.22 * max(highest, min(max(threads), cores)))
    panels[0].set_ylabel("work per second,\nrelative to one thread")
    panels[0].legend(frameon=False, loc="upper left", fontsize=9)
    limit = f"limit: {cores} usable core" + "s" * (cores > 1)
    if cores >= max(threads):
        limit = "limit: one core per thread"
    panels[-1].annotate(
        limit,
        (len(threads) - 1, min(threads[-1], cores)),
        (0, 9),
        textcoords="offset points",
        ha="center",
        size=9,
        color=INK,
    )


def _contention(figure: Any, section: dict[str, Any]) -> None:
    """Median and p99 of each call, alone and beside a busy Python thread, on a log scale."""
    wake_up, interval = section["wake_up"]["p50_s"], section["switch_interval_s"]
    _heading(figure, "What does a release cost beside one busy Python thread?")
    sizes = sorted({row["size"] for row in section["rows"]})
    panels = figure.subplots(1, len(sizes), sharey=True)
    for axes, size in zip(panels, sizes, strict=True):
        rows = [row for row in section["rows"] if row["size"] == size][::-1]
        for y, row in enumerate(rows):
            colour = COLOURS.get(row["call"], COLOURS.get(row["call"].split(".")[0], COLOURS["torch.ops"]))
            axes.plot([row["alone_p50_s"], row["p99_s"]], [y, y], color=colour, lw=2, alpha=0.35)
            axes.plot(row["alone_p50_s"], y, "o", mfc="white", mec=colour, mew=1.6, ms=8)
            axes.plot(row["p50_s"], y, "o", color=colour, ms=9)
            axes.plot(row["p99_s"], y, "|", color=colour, ms=13, mew=2.2)
        axes.set_xscale("log")
        axes.set_xlim(5e-7, 5e-2)
        axes.set_xticks([1e-6, 1e-5, 1e-4, 1e-3, 1e-2], ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms"])
        axes.minorticks_off()
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.axvline(interval, color=FAINT, ls=":", lw=1.2)
        axes.axvline(wake_up, color=FAINT, ls=":", lw=1.2)
        axes.text(interval * 1.1, len(rows) - 0.45, "switch interval", color=FAINT, size=8.5)
        axes.text(wake_up * 1.1, len(rows) - 0.45, f"wake-up {wake_up * 1e6:.0f} µs", color=FAINT, size=8.5)
        axes.set_yticks(range(len(rows)), [row["call"] for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.1)
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.set_title(f"add of {size}x{size}", family="monospace")
    mark = {"color": INK, "ls": ""}
    handles = [
        panels[0].plot([], [], "o", mfc="white", mec=INK, ms=8, ls="", label="alone, median")[0],
        panels[0].plot([], [], "o", ms=9, label="beside the busy thread, median", **mark)[0],
        panels[0].plot([], [], "|", ms=13, mew=2.2, label="beside it, p99", **mark)[0],
    ]
    figure.legend(handles=handles, frameon=False, loc="outside lower left", ncols=3, fontsize=9)
