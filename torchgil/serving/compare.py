"""Threads against processes on one model: run every contender, and say which to take."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from torchgil.serving.contenders import Contender
from torchgil.serving.measure import MARK, Figures

__all__ = ["Result", "best", "compare", "recommend"]


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
    command = [sys.executable, "-W", "ignore", "-m", "torchgil.serving.measure", json.dumps(options)]
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


def best(results: Iterable[Result]) -> Result | None:
    """The highest throughput; among those within 5 % of it, the least memory."""
    measured = [result for result in results if result.figures is not None]
    if not measured:
        return None
    top = max(_rate(result) for result in measured)
    return min((r for r in measured if _rate(r) >= 0.95 * top), key=_memory)


def recommend(results: list[Result]) -> str:
    """What to take and why, in a sentence, with the settings to copy.

    The lines run as they stand where `model`, `args` and `kwargs` are what the factory made, the model in
    eval mode; for processes, in a module of their own that has the factory.

    Example:
        >>> figures = Figures(1.0, 10.0, 0.1, 0.2, 500.0, 400.0, 0, 0, 0.0)
        >>> print(recommend([Result(Contender("threads", 2, 1, nogil=True), figures)]))
        Take 2 x 1 threads, nogil: 10.0 requests/s.
            forward = torchgil.nogil(model, args, kwargs)
            pool = torchgil.ThreadPool(2, intra_op_threads=1)
            future = pool.submit(forward, *args, **kwargs)
    """
    chosen = best(results)
    if chosen is None:
        return "Nothing could be measured."
    sentence = f"Take {chosen.contender.name}: {_rate(chosen):.1f} requests/s"
    single = next((r for r in results if r.contender.kind == "single" and r.figures), None)
    if single is not None and single is not chosen:
        sentence += f", {_rate(chosen) / _rate(single):.2f}x {single.contender.name}"
    processes = _top(results, ("processes", "shared"))
    threads = _top(results, ("threads",))
    if chosen.contender.kind == "threads" and processes is not None:
        sentence += "; " + _against(chosen, processes)
    lines = [sentence + ".", *(f"    {line}".rstrip() for line in _settings(chosen))]
    if chosen.contender.kind in ("processes", "shared") and threads is not None:
        lines += ["", *_why_processes(chosen, threads)]
    return "\n".join(lines)


def _against(chosen: Result, other: Result) -> str:
    assert chosen.figures is not None
    assert other.figures is not None
    return (
        f"against {other.contender.name} {_rate(chosen) / _rate(other):.2f}x the throughput, "
        f"{_memory(chosen) / _memory(other):.2f}x the memory and "
        f"{chosen.figures.start_up_s / other.figures.start_up_s:.2f}x the start-up"
    )


def _settings(chosen: Result) -> list[str]:
    contender = chosen.contender
    threads = contender.intra_op_threads
    if contender.kind == "single":
        return [
            f"torch.set_num_threads({threads})",
            "with torch.inference_mode():",
            "    result = model(*args, **kwargs)",
        ]
    if contender.kind != "threads":
        return _process_settings(contender)
    lines = []
    if contender.batching and contender.nogil:
        # What was measured: a batch of any number of rows.
        lines += [
            'rows = torch.export.Dim("rows", max=4096)',
            "two = torch.utils._pytree.tree_map(lambda x: torch.cat([x, x]), args)",
            "shapes = torch.utils._pytree.tree_map(lambda x: {0: rows}, args)",
            "forward = torchgil.nogil(model, two, dynamic_shapes=shapes)",
        ]
    elif contender.nogil:
        lines += ["forward = torchgil.nogil(model, args, kwargs)"]
    else:
        lines += ["forward = model"]
    mode = "" if contender.nogil else ", inference_mode=True"
    lines += [f"pool = torchgil.ThreadPool({contender.workers}, intra_op_threads={threads}{mode})"]
    if contender.batching:
        assert chosen.figures is not None
        size = f"concurrency={contender.workers}, max_batch_size={chosen.figures.max_batch_size:g}"
        return [
            *lines,
            "call = lambda request: forward(*request[0], **request[1])",
            f"batcher = torchgil.Batcher(call, executor=pool, {size})  # rows: a worker's share",
            "future = batcher.submit((args, kwargs))",
        ]
    if contender.asyncio:
        return [*lines, "result = await pool.run(forward, *args, **kwargs)"]
    return [*lines, "future = pool.submit(forward, *args, **kwargs)"]


def _process_settings(contender: Contender) -> list[str]:
    shared = contender.kind == "shared"
    handed = ", model.share_memory()" if shared else ""
    return [
        f"def start(threads{', shared' if shared else ''}):",
        "    global model",
        "    torch.set_num_threads(threads)",
        *(
            ["    model = shared"]
            if shared
            else [
                "    model, _ = factory()",
                "    if isinstance(model, torch.nn.Module):",
                "        model.eval()",
            ]
        ),
        "",
        "def answer(args, kwargs):",
        "    with torch.inference_mode():",
        "        return model(*args, **kwargs)",
        "",
        'if __name__ == "__main__":',
        '    spawn = multiprocessing.get_context("spawn")',
        f"    start_with = ({contender.intra_op_threads}{handed or ','})",
        f"    pool = ProcessPoolExecutor({contender.workers}, spawn, initializer=start, initargs=start_with)",
        "    future = pool.submit(answer, args, kwargs)",
    ]


def _why_processes(chosen: Result, threads: Result) -> list[str]:
    assert threads.figures is not None
    share = threads.figures.gil_wait_share or 0.0
    gain = _rate(chosen) / _rate(threads)
    isolation = "Processes also keep a crash to themselves: if you need that, take them in any case."
    if gain <= 1.05:
        return [
            f"It is the same throughput as {threads.contender.name} ({gain:.2f}x), in less memory.",
            isolation,
        ]
    if share < 0.1:
        return [
            f"Processes win by {gain:.2f}x over {threads.contender.name}, whose workers waited for the GIL",
            f"only {share:.0%} of their time: the reason is another, as locks or caches that requests share.",
            isolation,
        ]
    return [
        f"Processes win by {gain:.2f}x over {threads.contender.name}, whose workers waited for the GIL",
        f"{share:.0%} of their time: the price of pure-Python work in requests, which threads cannot share.",
        "Move it out of the request or into ops, or use torchgil.nogil where it failed above.",
        isolation,
    ]


def _top(results: list[Result], kinds: tuple[str, ...]) -> Result | None:
    return max(
        (r for r in results if r.figures and r.contender.kind in kinds and not r.contender.batching),
        key=_rate,
        default=None,
    )


def _rate(result: Result) -> float:
    assert result.figures is not None
    return result.figures.requests_per_s


def _memory(result: Result) -> float:
    assert result.figures is not None
    return result.figures.uss_mb if result.figures.pss_mb is None else result.figures.pss_mb
