"""The results of a comparison as a picture: throughput against memory."""

from __future__ import annotations

from typing import Any

from torchgil._pictures import save_figure
from torchgil.compare._recommendation import best
from torchgil.compare._run import Result

__all__ = ["plot"]


def plot(results: list[Result], path: str) -> None:
    """Draw throughput against memory, a cross of the visits' extremes per way, to the picture file `path`."""
    # Figure and not pyplot: no window, no global state, no backend chosen for anybody else.
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    chosen = best(results)
    colours = {"single": "tab:gray", "threads": "tab:blue", "processes": "tab:red", "shared": "tab:orange"}
    points = []
    for result in results:
        figures = result.figures
        if figures is None:
            continue
        measure = "uss_mb" if figures.pss_mb is None else "pss_mb"
        rate, memory, colour = (
            figures.requests_per_s,
            getattr(figures, measure),
            colours[result.contender.kind],
        )
        bars = [
            [[median - low], [high - median]]
            for median, (low, high) in (
                (memory, result.extremes(measure)),
                (rate, result.extremes("requests_per_s")),
            )
        ]
        axes.errorbar(memory, rate, xerr=bars[0], yerr=bars[1], c=colour, elinewidth=1, zorder=1)
        axes.scatter(memory, rate, s=160 if result is chosen else 50, c=colour, zorder=2)
        points.append((rate, memory, result.contender.name))
    axes.set(
        xlabel="memory of all processes, MB",
        ylabel="requests per second",
        title="Up and left is better; bars: the extremes",
    )
    axes.set_xlim(0, 1.35 * axes.get_xlim()[1])  # room for the last name
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    figure.draw_without_rendering()  # places the axes
    spots = axes.transData.transform([(memory, rate) for rate, memory, _ in points]) * 72 / figure.dpi
    taken: list[tuple[float, float]] = []
    for (x, at), (rate, memory, name) in sorted(zip(spots, points, strict=True), key=lambda p: -p[0][1]):
        y = at
        while any(abs(x - left) < 170 and abs(y - height) < 10 for left, height in taken) or any(
            0 < left - x < 130 and abs(y - height) < 9 for left, height in spots
        ):
            y -= 1  # under the name or the dot that stands there
        taken.append((x, y))
        axes.annotate(name, (memory, rate), (9, y - at - 3), textcoords="offset points", fontsize=8)
    save_figure(figure, path, dpi=150)
