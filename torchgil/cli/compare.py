"""`torchgil compare`: threads against processes on the user's own model."""

from __future__ import annotations

import argparse
import itertools
import sys

from torchgil._files import write_json
from torchgil._terminal import Progress
from torchgil._threads import usable_cores
from torchgil.cli import needs
from torchgil.cli.output import add_files, check_files, print_all, save_files
from torchgil.cli.script import count_argument, duration_argument
from torchgil.compare import (
    BUILTIN,
    Contender,
    NotLoadedError,
    best,
    compare,
    comparison_table,
    contenders,
    document,
    failures,
    plot,
    recommend,
)
from torchgil.compare._subject import split

__all__ = ["main"]

EXAMPLES = """
The factory takes nothing and returns (callable or nn.Module, example_inputs):

    def factory():
        return MyModel().eval(), (torch.randn(1, 3, 224, 224),)

examples:
  torchgil compare                                 a built-in transformer with 101 MB of weights
  torchgil compare app.models:factory --quick
  torchgil compare serve.py:factory --workers 4 -o out.json -o out.png
"""


def main(argv: list[str]) -> int:
    """Measure, print the table and the recommendation; 1 where nothing could be measured."""
    options = _parse(argv)
    needs("psutil")
    cores = usable_cores()
    workers = options.workers or max(2, cores)
    rows = contenders(workers, cores, quick=options.quick)
    in_flight = options.in_flight or 4 * workers
    seconds = options.seconds or (1.0 if options.quick else 2.0)
    total, visit = options.visits * len(rows), itertools.count(1)
    progress = Progress()

    def started(contender: Contender) -> None:
        number = next(visit)
        bar = "#" * (20 * (number - 1) // total)
        progress.show(f"[{bar:20}] {number}/{total} {contender.name}")

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
        progress.show("")
        print(f"{error}\n\ntorchgil compare: {options.factory} could not be loaded", file=sys.stderr)
        return 1
    progress.show("")
    data = document(results, options.factory, workers=workers, in_flight=in_flight, seconds=seconds)
    failed = save_files(
        options, json=lambda path: write_json(path, data), plot=lambda path: plot(results, path)
    )
    print_all(f"{comparison_table(results)}\n\n{failures(results)}{recommend(results)}", failed)
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
    count = count_argument(1, 1_000_000)
    parser.add_argument(
        "--workers",
        type=count_argument(1, 4096),
        metavar="K",
        help="threads and processes (default: usable cores, 2 at least)",
    )
    parser.add_argument(
        "--in-flight", type=count, metavar="N", help="requests asked for at a time (default: 4 per worker)"
    )
    parser.add_argument(
        "--seconds", type=duration_argument, metavar="S", help="load per visit (default 2, with --quick 1)"
    )
    parser.add_argument(
        "--visits",
        type=count,
        default=3,
        metavar="N",
        help="visits to each configuration, in turn (default 3)",
    )
    parser.add_argument(
        "--timeout", type=duration_argument, default=600.0, metavar="S", help="give a visit up (default 600)"
    )
    parser.add_argument("--quick", action="store_true", help="no grid of workers x intra-op threads")
    add_files(parser, json="write the figures", plot="draw throughput against memory")
    options = parser.parse_args(argv)
    check_files(parser, options)
    try:
        split(options.factory)
    except (OSError, ValueError) as error:  # a name too long, a current folder that is gone
        parser.error(str(error))
    return options
