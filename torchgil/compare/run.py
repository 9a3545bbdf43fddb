"""Every contender in a process of its own, one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from torchgil.compare.contenders import Contender
from torchgil.compare.measure import MARK, Figures

__all__ = ["Result", "compare"]


@dataclass(frozen=True, slots=True)
class Result:
    """One contender's figures, or why there are none."""

    contender: Contender
    figures: Figures | None
    error: str = ""  # a traceback

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {"name": self.contender.name, **asdict(self)}


def compare(
    rows: Iterable[Contender],
    factory: str,
    *,
    in_flight: int,
    seconds: float,
    timeout: float = 600.0,
    started: Callable[[Contender], None] = lambda _: None,
) -> list[Result]:
    """Measure each contender in a fresh process, one after the other.

    Args:
        rows: What to measure.
        factory: `MODULE:FACTORY`, looked for from the current directory on.
        in_flight: Requests asked for at a time.
        seconds: How long to load each contender.
        timeout: Seconds after which a contender is given up.
        started: Called before each.

    Returns:
        One result per contender; what fails has its traceback, and the rest goes on.
    """
    results = []
    for contender in rows:
        started(contender)
        results.append(_measure_in_child(contender, factory, in_flight, seconds, timeout))
    return results


def _measure_in_child(
    contender: Contender, factory: str, in_flight: int, seconds: float, timeout: float
) -> Result:
    options = {
        "contender": asdict(contender),
        "factory": factory,
        "in_flight": in_flight,
        "seconds": seconds,
    }
    command = [sys.executable, "-W", "ignore", "-m", "torchgil.compare.measure", json.dumps(options)]
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
        stdout, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return Result(contender, None, f"no result within {timeout:g} s")
    finally:
        _end_session(child)
    _, _, marked = stdout.rpartition(f"\n{MARK}\n")
    measured = marked.partition("\n")[0]  # an exit handler of the user's may print after it
    if child.returncode != 0 or not measured:
        return Result(contender, None, f"{stderr.strip()}\nexit code {child.returncode}".strip())
    try:
        return Result(contender, Figures(**json.loads(measured)))
    except (ValueError, TypeError) as error:  # something of the user's printed amid it
        return Result(contender, None, f"its figures cannot be read ({error}): {measured}")


def _end_session(child: subprocess.Popen[str]) -> None:
    """Leave no process of the child's behind: a worker that outlives it would disturb the next contender."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.communicate()
