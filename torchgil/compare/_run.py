"""Every contender in processes of its own: several short visits, all ways in turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchgil import _html as html
from torchgil.compare._contenders import Contender
from torchgil.compare._measure import MARK, NOT_LOADED, Figures

__all__ = ["NotLoadedError", "Result", "compare"]

_LONGEST_S = 2_000_000  # poll() takes no more than 2**31 ms


class NotLoadedError(Exception):
    """The factory is not there, or failed. The message is the traceback of that."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the visits to one contender found, or why there is nothing.

    Attributes:
        contender: Which.
        visits: Each visit's figures; none where one failed.
        error: The traceback of the visit that failed.
    """

    contender: Contender
    visits: tuple[Figures, ...]
    error: str = ""

    @property
    def figures(self) -> Figures | None:
        """The median of each figure; None where there are none."""
        if not self.visits:
            return None
        return Figures(**{name: _median(values) for name, values in self._columns().items()})

    def extremes(self, name: str) -> tuple[float, float]:
        """The least and the most that the visits found of one figure."""
        values = self._columns()[name]
        return min(values), max(values)

    def _columns(self) -> dict[str, list[Any]]:
        return {
            field.name: [getattr(visit, field.name) for visit in self.visits] for field in fields(Figures)
        }

    def _repr_html_(self) -> str:
        name = self.contender.name
        if self.figures is None:
            return html.page(
                html.paragraph(name, strong=True), html.preformatted(self.error or "not measured")
            )
        rows = []
        for field, value in asdict(self.figures).items():
            if value is not None:
                least, most = self.extremes(field)
                rows.append((field, f"{value:.4g}", f"{least:.4g}", f"{most:.4g}"))
        head = (name, f"median of {len(self.visits)}", "least", "most")
        return html.page(html.table(head, rows))

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON: the medians as "figures", the extremes, and each visit."""
        figures = self.figures
        known = [name for name, values in self._columns().items() if values and None not in values]
        return {
            "name": self.contender.name,
            "contender": asdict(self.contender),
            "figures": figures and asdict(figures),
            "extremes": {name: self.extremes(name) for name in known},
            "visits": [asdict(visit) for visit in self.visits],
            "error": self.error,
        }


def _median(values: list[Any]) -> Any:
    return None if None in values else statistics.median(values)


def compare(
    rows: Iterable[Contender],
    factory: str,
    *,
    in_flight: int,
    seconds: float,
    visits: int = 3,
    timeout: float = 600.0,
    started: Callable[[Contender], None] = lambda _: None,
) -> list[Result]:
    """Measure the contenders in turn, as often as asked, each visit in a fresh process.

    A machine's speed changes from one minute to the next, so the visits of each contender are spread over the
    whole time.

    Args:
        rows: What to measure.
        factory: `MODULE:FACTORY`, looked for from the current directory on.
        in_flight: Requests asked for at a time.
        seconds: How long to load a contender at each visit.
        visits: How often each is measured.
        timeout: Seconds after which a visit is given up.
        started: Called before each visit.

    Returns:
        One result per contender; what fails has its traceback and is visited no more, and the rest goes on.

    Raises:
        NotLoadedError: The factory could not be loaded at the first visit: so it would be at the others.
    """
    results = {contender: Result(contender, ()) for contender in rows}
    for _ in range(visits):
        for contender, result in results.items():
            if not result.error:
                started(contender)
                try:
                    found, error = _visit(contender, factory, in_flight, seconds, timeout)
                except NotLoadedError as not_loaded:
                    if not any(result.visits or result.error for result in results.values()):
                        raise
                    found, error = (), str(not_loaded)
                results[contender] = Result(contender, (*result.visits, *found) if not error else (), error)
    return list(results.values())


def _visit(
    contender: Contender, factory: str, in_flight: int, seconds: float, timeout: float
) -> tuple[tuple[Figures, ...], str]:
    """What a fresh process measured, or the traceback it left."""
    options = {
        "contender": asdict(contender),
        "factory": factory,
        "in_flight": in_flight,
        "seconds": seconds,
    }
    command = [sys.executable, "-W", "ignore", "-m", "torchgil.compare._child", json.dumps(options)]
    # The default of every thread that sets no number of its own, in process pools too.
    threads = str(contender.intra_op_threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,  # so that its workers can be ended with it
    )
    try:
        stdout, stderr = child.communicate(timeout=min(timeout, _LONGEST_S))
    except subprocess.TimeoutExpired:
        return (), f"no result within {timeout:g} s"
    finally:
        _end_session(child)
    if f"\n{NOT_LOADED}\n" in stdout:
        raise NotLoadedError(stderr.strip())
    _, _, marked = stdout.rpartition(f"\n{MARK}\n")
    measured = marked.partition("\n")[0]  # an exit handler of the user's may print after it
    if child.returncode != 0 or not measured:
        return (), f"{stderr.strip()}\nexit code {child.returncode}".strip()
    try:
        return (Figures(**json.loads(measured)),), ""
    except (ValueError, TypeError) as error:  # something of the user's printed amid it
        return (), f"its figures cannot be read ({error}): {measured}"


def _end_session(child: subprocess.Popen[str]) -> None:
    """Leave no process of the child's behind: a worker that outlives it would disturb the next contender."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.communicate()
