"""The results of a comparison as text. Pure."""

from __future__ import annotations

from torchgil._formatting import table
from torchgil.compare._recommendation import best
from torchgil.compare._run import Result

__all__ = ["comparison_table", "failures"]

_COLUMNS = (
    "",
    "start s",
    "req/s",
    "p50 ms",
    "p99 ms",
    "USS MB",
    "PSS MB",
    "pickled B",
    "shared B",
    "GIL wait",
)


def comparison_table(results: list[Result]) -> str:
    """A row per result, and what the columns mean."""
    chosen = best(results)
    rows: list[tuple[str, ...]] = []
    for result in results:
        name = ("* " if result is chosen else "  ") + result.contender.name
        figures = result.figures
        if figures is None:
            rows.append((name, "failed", *[""] * 8))
            continue
        pss = "" if figures.pss_mb is None else f"{figures.pss_mb:.0f}"
        wait = "" if figures.gil_wait_share is None else f"{figures.gil_wait_share:.1%}"
        rows.append(
            (
                name,
                f"{figures.start_up_s:.2f}",
                _spread(result, "requests_per_s", 1, figures.requests_per_s),
                _spread(result, "p50_s", 1e3, figures.p50_s),
                f"{figures.p99_s * 1e3:.1f}",
                f"{figures.uss_mb:.0f}",
                pss,
                str(figures.pickled_bytes),
                str(figures.shared_bytes),
                wait,
            )
        )
    notes = [
        f"Medians (and extremes) of {max(len(result.visits) for result in results)} visits.",
        "* the highest throughput; among those within 5 % of it, the least memory",
        "One thread has one request at a time, the others all that are in flight: their p50 has a queue.",
        "Each process has a GIL of its own: no wait is measured there.",
    ]
    return "\n".join([table(_COLUMNS, rows), *notes])


def _spread(result: Result, name: str, factor: float, median: float) -> str:
    text = f"{median * factor:.1f}"
    if len(result.visits) > 1:
        low, high = result.extremes(name)
        text += f" ({low * factor:.1f} to {high * factor:.1f})"
    return text


def failures(results: list[Result]) -> str:
    """What went wrong, once for all the ways in which it did; "" where nothing did."""
    names: dict[str, list[str]] = {}
    for result in results:
        if result.figures is None:
            names.setdefault(result.error, []).append(result.contender.name)
    return "".join(f"failed: {'; '.join(failed)}\n{error}\n\n" for error, failed in names.items())
