"""What the project promises about speed, and where in benchmarks/results each figure is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Spread = Mapping[str, float]
PEERS = ("batched", "async-batcher")


@dataclass(frozen=True)
class Budget:
    """One promise about speed."""

    benchmark: str
    what: str
    at_most: bool
    limit: float
    unit: str
    figure: Callable[[Any], Spread]


def of_row(figure: str, factor: float = 1, **wanted: Any) -> Callable[[list[Any]], Spread]:
    """A figure of the one row with these values, times `factor`."""

    def find(rows: list[Any]) -> Spread:
        found = of_row_whole(rows, **wanted)
        return {key: found[figure][key] * factor for key in ("median", "min", "max")}

    return find


def ratio(rounds: list[Any], above: Callable[[Any], float], below: Callable[[Any], float]) -> Spread:
    """Median and extremes of a ratio taken round by round."""
    ratios = sorted(above(r) / below(r) for r in rounds)
    return {"median": ratios[len(ratios) // 2], "min": ratios[0], "max": ratios[-1]}


def forward(row_name: str, key: Callable[[Any], float], base: Callable[[Any], float] | None = None) -> Any:
    """A ratio of the transformer's row to another of its own figures, or to eager's of the same round."""

    def figure(rows: Any) -> Spread:
        rounds = rows["rounds"]["transformer"]
        if base is not None:
            return ratio(rounds[row_name], key, base)
        pairs = list(zip(rounds[row_name], rounds["eager"], strict=True))
        return ratio(pairs, lambda pair: key(pair[0]), lambda pair: key(pair[1]))

    return figure


def single(value: float) -> Spread:
    return {"median": value, "min": value, "max": value}


def rms_norm_slowest(rows: list[Any]) -> Spread:
    return min((r["torch_over_torchgil"][what] for r in rows for what in ("forward", "both")), key=_median)


def least_ratio(*names: str) -> Callable[[list[Any]], Spread]:
    """The ratio of that of these rows which has the least."""

    def figure(rows: list[Any]) -> Spread:
        return min((of_row("ratio", row=name)(rows) for name in names), key=_median)

    return figure


def over_peers(way: str) -> Callable[[list[Any]], Spread]:
    """A batcher's rows over those of the peer that comes closest, both asked in the same way."""
    return least_ratio(*(f"torchgil {way} over {peer} {way}" for peer in PEERS))


def over_processes(key: str, *, batching: bool = False) -> Callable[[list[Any]], Spread]:
    """The figure of `nogil` threads over that of the process pool with a model in each."""

    def figure(rows: list[Any]) -> Spread:
        ways = [(r["contender"], r[key]["median"]) for r in rows if key in r]  # a way that failed has none
        (threads,) = [
            median
            for way, median in ways
            if way["kind"] == "threads"
            and way["nogil"]
            and not way["asyncio"]
            and way["batching"] == batching
        ]
        (processes,) = [median for way, median in ways if way["kind"] == "processes"]
        return single(threads / processes)

    return figure


def asked_late(rows: list[Any]) -> Spread:
    """Microseconds from a thread's asking to its having the GIL, less what a wake-up takes."""
    row = of_row_whole(rows, work="reacquire", way="priority")
    return single(1e6 * (row["p50_s"]["median"] - row["wakeup_p50_s"]["median"]))


def left_to_the_busy(rows: list[Any]) -> Spread:
    """The busy threads' progress beside priority, over that beside the short interval: the worst row's."""
    crowds = {(r["work"], r["workers"], r["busy"]) for r in rows if r["way"] == "interval" and r["busy"]}
    kept = []
    for work, workers, busy in crowds:
        at = {"work": work, "workers": workers, "busy": busy}
        with_priority, by_interval = (
            of_row_whole(rows, way=way, **at)["busy_per_s"]["median"] for way in ("priority", "interval")
        )
        kept.append(with_priority / by_interval)
    return single(min(kept))


def over_interval(figure: str, worst: Callable[[Iterable[float]], float]) -> Callable[[list[Any]], Spread]:
    """A figure of a crowd with priority over that with the short interval: the worst crowd's."""

    def find(rows: list[Any]) -> Spread:
        crowds = {(r["workers"], r["busy"]) for r in rows if r["work"] == "eager" and r.get("busy")}
        ratios = []
        for workers, busy in crowds:
            at = {"work": "eager", "workers": workers, "busy": busy}
            ours, other = (of_row_whole(rows, way=way, **at) for way in ("priority", "interval"))
            ratios.append(ours[figure]["median"] / other[figure]["median"])
        return single(worst(ratios))

    return find


def over_plain(figure: str, **wanted: Any) -> Callable[[list[Any]], Spread]:
    """A figure with priority over the same without."""

    def find(rows: list[Any]) -> Spread:
        ours, plain = (of_row_whole(rows, way=way, **wanted) for way in ("priority", "plain"))
        return single(ours[figure]["median"] / plain[figure]["median"])

    return find


def kept_beside(**wanted: Any) -> Callable[[list[Any]], Spread]:
    """The busy threads' progress beside a row, in percent of what they do with nobody beside them."""

    def find(rows: list[Any]) -> Spread:
        row = of_row_whole(rows, **wanted)
        return single(100 * row["busy_per_s"]["median"] / row["busy_alone_per_s"]["median"])

    return find


def of_worst(figure: str, factor: float = 1, **wanted: Any) -> Callable[[list[Any]], Spread]:
    """The largest figure of the rows with these values, times `factor`."""

    def find(rows: list[Any]) -> Spread:
        found = [r[figure] for r in rows if all(r.get(key) == value for key, value in wanted.items())]
        worst = max(found, key=_median)
        return {key: worst[key] * factor for key in ("median", "min", "max")}

    return find


def of_row_whole(rows: list[Any], **wanted: Any) -> Any:
    (found,) = [r for r in rows if all(r.get(key) == value for key, value in wanted.items())]
    return found


def _median(spread: Spread) -> float:
    return spread["median"]


def _two_over_one(r: Any) -> float:
    return float(r["per_second"]["2"])


def _one(r: Any) -> float:
    return float(r["per_second"]["1"])


def _p50(r: Any) -> float:
    return float(r["p50_s"])


BUDGETS = [
    Budget("call_overhead", "`released.add`, 4x4, over `torch.add`", True, 1.05, "x",
           of_row("ratio", question="call", path="released.add")),
    Budget("call_overhead", "a release over a raw `Py_BEGIN_ALLOW_THREADS` pair", True, 1.3, "x",
           of_row("ratio", question="release", path="released's window")),
    Budget("call_overhead", "`adaptive.add` beside a busy Python thread, p99 over that alone", True, 3, "x",
           of_row("p99_ratio", question="beside", path="adaptive.add")),
    Budget("scaling", "`released.spin`, two threads over one", False, 1.95, "x",
           of_row("speedup_2", op="released.spin")),
    Budget("scaling", "`held.spin`, two threads over one", True, 1.05, "x",
           of_row("speedup_2", op="held.spin")),
    Budget("scaling", "`released.matmul`, 1500x1500, two threads over one", False, 1.9, "x",
           of_row("speedup_2", op="released.matmul")),
    Budget("rms_norm", "`rms_norm`'s speed over torch's, the slowest of 32 cases", False, 1, "x",
           rms_norm_slowest),
    Budget("tracing", "the transformer's forward traced, over untraced", True, 1.1, "x",
           of_row("ratio", question="forward", tool="torchgil.trace")),
    Budget("tracing", "the same with `trace(ops=False)`", True, 1.02, "x",
           of_row("ratio", question="forward", tool="torchgil.trace(ops=False)")),
    Budget("tracing", "a release and reacquire traced, over untraced", True, 150, " ns",
           of_row("added_ns", question="pair")),
    Budget("tracing", "the watchdog beside a program at rest", True, 1, " % of a core",
           of_row("share_of_a_core", 100, question="watchdog", program="sleeps")),
    Budget("monitor", "`GilMonitor` at 200 looks a second, beside the load where it takes most", True, 0.3,
           " % of a core", of_worst("share_of_a_core", 100, question="cost", watcher="GilMonitor")),
    Budget("monitor", "its share of time off the trace's, for the load where it is most", True, 2, " points",
           of_worst("off", 100, question="share")),
    Budget("forward", "`nogil`, p50 over eager's", True, 0.95, "x", forward("graph", _p50)),
    Budget("forward", "`nogil`, two threads over one", False, 1.9, "x",
           forward("graph", _two_over_one, _one)),
    Budget("forward", "`nogil` beside a busy thread, p50 less its p50 alone", True, 10, " ms",
           lambda rows: ratio(rows["rounds"]["transformer"]["graph"],
                              lambda r: 1e3 * (r["busy_default_p50_s"] - r["p50_s"]), lambda _: 1)),
    Budget("forward", "the same at a switch interval of 100 us, over its p50 alone", True, 1.5, "x",
           forward("graph", lambda r: r["busy_100us_p50_s"], _p50)),
    Budget("forward", "`nogil`, peak memory over eager's", True, 1.1, "x",
           forward("graph", lambda r: r["peak_mib"])),
    Budget("forward", "`nogil(backend=\"inductor\")`, two threads over one", False, 1.9, "x",
           forward("inductor", _two_over_one, _one)),
    Budget("forward", "the interpreter's own cost of an instruction", True, 150, " ns",
           lambda rows: single(1e9 * rows["about"]["overhead"]["view_interpreter_s"])),
    Budget("priority", "getting the GIL back with priority, p50 less a wake-up's", True, 30, " us",
           asked_late),
    Budget("priority", "eager forward with `gil_priority()` beside a busy thread, over alone", True, 2.5, "x",
           of_row("ratio", work="eager", way="priority", workers=1, busy=1)),
    Budget("priority", "training step, likewise", True, 2.5, "x",
           of_row("ratio", work="step", way="priority", workers=1, busy=1)),
    Budget("priority", "`nogil` beside a busy thread, p50 over that alone", True, 1.2, "x",
           of_row("ratio", work="nogil", way="priority", workers=1, busy=1)),
    Budget("priority", "eager forward alone, with priority over without", True, 1.01, "x",
           of_row("on_over_off", work="eager", way="off and on")),
    Budget("priority", "a block of `gil_priority()`, after the first", True, 1, " us",
           of_row("block_s", 1e6, work="eager", way="off and on")),
    Budget("priority", "the busy threads' progress, over `setswitchinterval(1e-5)`'s; the worst row", False,
           0.5, "x", left_to_the_busy),
    Budget("priority", "crowds of eager forwards, a second, over `setswitchinterval(1e-5)`'s; the worst row",
           False, 1, "x", over_interval("calls_per_s", min)),
    Budget("priority", "the same, p99", True, 1, "x", over_interval("p99_s", max)),
    Budget("priority", "two forwards at once, nobody busy, a second, over those without priority",
           False, 0.98, "x", over_plain("calls_per_s", work="eager", workers=2, busy=0)),
    Budget("priority", "a language model's token beside a busy thread, mean, over alone", True, 2.3, "x",
           of_row("mean_ratio", work="decode", way="priority", workers=1, busy=1)),
    Budget("priority", "what the busy thread keeps meanwhile", False, 45, "%",
           kept_beside(work="decode", way="priority", workers=1, busy=1)),
    Budget("priority", "the same token in two threads", True, 2.3, "x",
           of_row("mean_ratio", work="decode", way="priority", workers=2, busy=1)),
    Budget("priority", "a thousand releases of 2 us beside a busy thread, over those without", True, 1.1,
           "x", over_plain("p50_s", work="tiny", workers=1, busy=1)),
    Budget("batching", "`Batcher` from threads, rows over single calls, worse of two models", False, 2, "x",
           least_ratio("torchgil threads", "torchgil threads, 256 wide")),
    Budget("batching", "`Batcher` from asyncio, likewise", False, 2, "x",
           least_ratio("torchgil asyncio", "torchgil asyncio, 256 wide")),
    Budget("batching", "`Batcher`, one thread submits 4,000 and collects, over single calls", False, 2, "x",
           of_row("ratio", row="torchgil one thread")),
    Budget("batching", "`Batcher` from threads, rows over the better peer's", False, 1.5, "x",
           over_peers("threads")),
    Budget("batching", "the same, 32 threads that each wait for one request", False, 1.5, "x",
           of_row("ratio", row="torchgil 32 waiting threads over batched 32 waiting threads")),
    Budget("batching", "`Batcher` from asyncio, rows over the better peer's", False, 1.5, "x",
           over_peers("asyncio")),
    Budget("batching", "`Batcher` from 4,000 tasks, rows over those from 256", False, 1, "x",
           of_row("ratio", row="torchgil asyncio, 4000 tasks over torchgil asyncio")),
    Budget("batching", "a lone request over a bare `ThreadPoolExecutor`'s, p50", True, 80, " us",
           of_row("submit_over_executor_p50_us", row="lone request")),
    Budget("threads_vs_processes", "`nogil` threads over processes, requests per second", False, 1.2, "x",
           over_processes("requests_per_s")),
    Budget("threads_vs_processes", "the same, threads that batch", False, 1.2, "x",
           over_processes("requests_per_s", batching=True)),
    Budget("threads_vs_processes", "`nogil` threads over processes, memory", True, 0.6, "x",
           over_processes("pss_mb")),
    Budget("threads_vs_processes", "`nogil` threads over processes, start-up", True, 0.1, "x",
           over_processes("start_up_s")),
]  # fmt: skip


def met(budget: Budget, figure: Spread, end: str = "median") -> bool:
    return figure[end] <= budget.limit if budget.at_most else figure[end] >= budget.limit


def stable(budget: Budget, figure: Spread) -> bool:
    """Whether the rounds agree on whether it is met."""
    return met(budget, figure, "min") == met(budget, figure, "max")


def number(value: float, unit: str) -> str:
    return f"{value:.3g}{unit}" if unit == "x" or abs(value) < 100 else f"{value:.0f}{unit}"
