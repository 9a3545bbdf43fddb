"""Which contender to take, and why, with the settings to copy."""

from __future__ import annotations

from collections.abc import Iterable

from torchgil.compare._contenders import Contender
from torchgil.compare._run import Result

__all__ = ["best", "recommend"]


def best(results: Iterable[Result]) -> Result | None:
    """The highest throughput, by the medians; among those within 5 % of it, the least memory."""
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
        >>> from torchgil.compare._measure import Figures
        >>> figures = Figures(1.0, 10.0, 0.1, 0.2, 500.0, 400.0, 0, 0, 0.0)
        >>> print(recommend([Result(Contender("threads", 2, 1, nogil=True), (figures,))]))
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
    lines += _unsettled(chosen, results)
    return "\n".join(lines)


def _unsettled(chosen: Result, results: list[Result]) -> list[str]:
    """What the visits leave open: a way that was as fast at its best as the chosen one at its worst."""
    least, most = chosen.extremes("requests_per_s")
    near = [
        f"{result.contender.name} {low:.1f} to {high:.1f}"
        for result in results
        if result.visits and result is not chosen
        for low, high in [result.extremes("requests_per_s")]
        if high >= least and len(result.visits) > 1
    ]
    if not near:
        return []
    return [
        "",
        f"The visits overlap: {chosen.contender.name} {least:.1f} to {most:.1f} requests/s, "
        f"{'; '.join(near)}.",
        "Where that matters, ask again with more --visits, on an idle machine.",
    ]


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
