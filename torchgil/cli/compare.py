"""`torchgil compare`: threads against processes on the user's own model."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys

from torchgil._files import write_whole
from torchgil._pictures import save_figure
from torchgil._threads import usable_cores
from torchgil._version import __version__
from torchgil.cli import needs
from torchgil.cli.output import output_file, save_all
from torchgil.cli.streams import for_whoever_reads, is_terminal
from torchgil.compare import (
    BUILTIN,
    Contender,
    NotLoadedError,
    Result,
    best,
    compare,
    contenders,
    recommend,
)
from torchgil.compare._subject import split

__all__ = ["main"]

FORMAT_VERSION = 2

EXAMPLES = """
The factory takes nothing and returns (callable or nn.Module, example_inputs):

    def factory():
        return MyModel().eval(), (torch.randn(1, 3, 224, 224),)

examples:
  torchgil compare                                 a built-in transformer with 101 MB of weights
  torchgil compare app.models:factory --quick
  torchgil compare serve.py:factory --workers 4 --json out.json --plot out.png
"""


def main(argv: list[str]) -> int:
    """Measure, print the table and the recommendation; 1 where nothing could be measured."""
    options = _parse(argv)
    needs("psutil", *(["matplotlib"] if options.plot else []))
    cores = usable_cores()
    workers = options.workers or max(2, cores)
    rows = contenders(workers, cores, quick=options.quick)
    seconds = options.seconds or (1.0 if options.quick else 2.0)
    total = options.visits * len(rows)
    in_flight = options.in_flight or 4 * workers
    done = 0

    def started(contender: Contender) -> None:
        nonlocal done
        _progress(done, total, contender.name)
        done += 1

    try:
        results = compare(
            rows,
            options.factory,
            in_flight=in_flight,
            seconds=seconds,
            visits=options.visits,
            timeout=options.timeout,
            started=started,
        )
    except NotLoadedError as error:
        _progress(total, total, "")
        print(f"{error}\n\ntorchgil compare: {options.factory} could not be loaded", file=sys.stderr)
        return 1
    _progress(total, total, "")
    data = {
        "format": "torchgil-compare",
        "version": FORMAT_VERSION,
        "machine": _machine(cores),
        "factory": options.factory,
        "workers": workers,
        "in_flight": in_flight,
        "seconds": seconds,
        "rows": [result.to_dict() for result in results],
    }
    failed = save_all(
        (options.json, lambda path: write_whole(path, json.dumps(data, indent=1) + "\n")),
        (options.plot, lambda path: plot(results, path)),
    )
    shown = f"{_table(results)}\n\n{_errors(results)}{recommend(results)}"
    with for_whoever_reads():
        print(shown)
        for line in failed:
            print(line, file=sys.stderr)
    return 0 if best(results) and not failed else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torchgil compare",
        description="Measure threads, processes, nogil, asyncio and batching on one model, side by side.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "factory", nargs="?", default=BUILTIN, metavar="MODULE:FACTORY", help="also FILE.py:FACTORY"
    )
    parser.add_argument(
        "--workers", type=int, metavar="K", help="threads and processes (default: usable cores, 2 at least)"
    )
    parser.add_argument(
        "--in-flight", type=int, metavar="N", help="requests asked for at a time (default: 4 per worker)"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="load per visit (default 2, with --quick 1)"
    )
    parser.add_argument(
        "--visits", type=int, default=3, metavar="N", help="visits to each configuration, in turn (default 3)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="give a visit up (default 600)"
    )
    parser.add_argument("--quick", action="store_true", help="no grid of workers x intra-op threads")
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the figures")
    parser.add_argument("--plot", metavar="FILE", type=output_file, help="draw throughput against memory")
    options = parser.parse_args(argv)
    for name in ("workers", "in_flight", "seconds", "visits", "timeout"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be more than 0 and finite, got {value}")
    try:
        split(options.factory)
    except ValueError as error:
        parser.error(str(error))
    return options


def _machine(cores: int) -> dict[str, object]:
    import torch

    return {
        "cores": cores,
        "cpu": platform.processor() or platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchgil": __version__,
    }


def _progress(done: int, total: int, name: str) -> None:
    if not is_terminal(sys.stderr):
        return
    bar = "#" * (20 * done // total)
    with for_whoever_reads():
        sys.stderr.write("\r\x1b[K" + (f"[{bar:20}] {done + 1}/{total} {name}" if name else ""))


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


def _table(results: list[Result]) -> str:
    chosen = best(results)
    lines: list[tuple[str, ...]] = [_COLUMNS]
    for result in results:
        name = ("* " if result is chosen else "  ") + result.contender.name
        figures = result.figures
        if figures is None:
            lines.append((name, "failed", *[""] * 8))
            continue
        pss = "" if figures.pss_mb is None else f"{figures.pss_mb:.0f}"
        wait = "" if figures.gil_wait_share is None else f"{figures.gil_wait_share:.1%}"
        lines.append(
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
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    notes = [
        f"Medians (and extremes) of {max(len(result.visits) for result in results)} visits.",
        "* the highest throughput; among those within 5 % of it, the least memory",
        "One thread has one request at a time, the others all that are in flight: their p50 has a queue.",
        "Each process has a GIL of its own: no wait is measured there.",
    ]
    return "\n".join([*text, *notes])


def _spread(result: Result, name: str, factor: float, median: float) -> str:
    text = f"{median * factor:.1f}"
    if len(result.visits) > 1:
        low, high = result.extremes(name)
        text += f" ({low * factor:.1f} to {high * factor:.1f})"
    return text


def _errors(results: list[Result]) -> str:
    names: dict[str, list[str]] = {}
    for result in results:
        if result.figures is None:
            names.setdefault(result.error, []).append(result.contender.name)
    return "".join(f"failed: {'; '.join(failed)}\n{error}\n\n" for error, failed in names.items())


def plot(results: list[Result], path: str) -> None:
    """Draw throughput against memory, a cross of the visits' extremes per way, to the picture file `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
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
    figure.canvas.draw()  # places the axes
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
