"""The tables of README.md and docs/, line by line, from kept results. Measures nothing."""

from __future__ import annotations

from typing import Any

from cells import cell, milliseconds, shown, table
from priority_tables import io_rows, priority_crowds_rows, priority_work_rows, priority_works_rows

# The ways of a forward that README shows.
FORWARDS = {
    "eager": "eager",
    "priority": "eager, `gil_priority()`",
    "compile": "`torch.compile`",
    "aoti": "AOTInductor, torch's loader",
    "onnx": "ONNX Runtime",
    "onnx_priority": "ONNX Runtime, `gil_priority()`",
    "graph": "`nogil`",
    "inductor": '`nogil`, `backend="inductor"`',
    "frozen": "the same with `freeze=True`",
}


def forward_rows(rows: Any) -> list[str]:
    lines = []
    for way, title in FORWARDS.items():
        if way not in rows["table"]["transformer"]:
            continue  # measured with --rows
        figures = rows["table"]["transformer"][way]
        two = figures["per_second"]["2"]["median"] / figures["per_second"]["1"]["median"]
        cells = [
            f"{cell(figures, 'p50_s', 1e3, 2)} ms",
            f"{two:.2f}x",
            f"{cell(figures, 'busy_default_p50_s', 1e3, 1)} ms",
            f"{cell(figures, 'busy_100us_p50_s', 1e3, 1)} ms",
            cell(figures, "ticks_per_second", 1, 0),
        ]
        lines.append([title, *cells])
    return table(
        "| p50 alone | two threads | p50 beside a busy Python thread | with a 100 us switch interval "
        "| a monitor's ticks/s",
        lines,
    )


BATCHING = {
    "singles": "a loop of single calls, against itself",
    "by hand": "by hand: concatenate 32, call, split, no queue",
    "torchgil threads": "`Batcher`, two threads",
    "torchgil map": "`Batcher.map`, one thread",
    "torchgil one thread": "`Batcher`, one thread submits 4,000, more than the queue holds, then collects",
    "torchgil one thread, not frozen": "the same without `gc.freeze()`",
    "torchgil one thread, priority": "the same with it, and with priority for the worker",
    "torchgil asyncio": "`Batcher`, 256 tasks of one event loop",
    "torchgil asyncio, max_delay=0": "the same with `max_delay=0`",
    "torchgil asyncio, copy=False": "the same with `copy=False`",
    "torchgil asyncio, 4000 tasks": "`Batcher`, 4,000 tasks, more than the queue holds",
    "asyncio alone": "an event loop alone, nothing computed: 256 tasks",
    "asyncio alone, 4000 tasks": "the same, 4,000 tasks",
    "torchgil 32 waiting threads": "`Batcher`, 32 threads that each wait for one request",
    "batched asyncio": "`batched`, 256 tasks",
    "batched threads": "`batched`, two threads",
    "batched 32 waiting threads": "`batched`, 32 threads that each wait for one request",
    "async-batcher asyncio": "`async-batcher`, 256 tasks",
    "async-batcher threads": "`async-batcher`, two threads",
    "by hand, 256 wide": "256 wide: by hand",
    "torchgil threads, 256 wide": "256 wide: `Batcher`, two threads",
    "torchgil asyncio, 256 wide": "256 wide: `Batcher`, 256 tasks",
}


def batching_rows(rows: Any) -> list[str]:
    found = {r["row"]: r for r in rows}
    lines = []
    for name, title in BATCHING.items():
        ratio = found[name]["ratio"]
        lines.append([title, f"{ratio['median']:.1f}x ({ratio['min']:.1f} to {ratio['max']:.1f})"])
    for way, title in (
        ("submit", "a lone request, over the direct call, p50"),
        ("executor", "the same through a bare `ThreadPoolExecutor`"),
    ):
        added = found["lone request"][f"{way}_added_p50_us"]
        lines.append([title, f"+{added['median']:.0f} us ({added['min']:.0f} to {added['max']:.0f})"])
    return table("|", lines)


def compare_rows(rows: Any) -> list[str]:
    lines = []
    for r in rows:
        if "error" in r:
            lines.append([r["name"], "failed", *[""] * 4])
            continue
        rate = r["requests_per_s"]
        cells = [
            cell(r, "start_up_s", 1, 1),
            f"{rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f})",
            cell(r, "p50_s", 1e3, 0),
            cell(r, "p99_s", 1e3, 0),
            cell(r, "pss_mb", 1, 0),
        ]
        lines.append([r["name"], *cells])
    return table("| start s | req/s | p50 ms | p99 ms | PSS MB", lines)


def pool_workers_rows(rows: Any) -> list[str]:
    lines = []
    for r in rows:
        if "forwards_per_s" in r:
            rate, cpu = r["forwards_per_s"], r["cpu_ms"]
            low_to_high = f"({rate['min']:.0f} to {rate['max']:.0f})"
            lines.append([r["row"], f"{rate['median']:.0f} {low_to_high}", f"{cpu['median']:.1f} ms"])
    return table("workers x intra-op threads | forwards/s | processor time of each", lines)


def pool_interval_rows(rows: Any) -> list[str]:
    found = {r["row"]: r for r in rows}
    titles = {
        "busy, 5 ms": "5 ms (default)",
        "busy, 1 ms": "1 ms",
        "busy, 0.1 ms": "100 us",
        "busy, 0.01 ms": "10 us",
        "alone": "nobody busy",
    }
    lines = []
    for row, title in titles.items():
        cells = []
        for way in ("eager", "nogil"):
            r = found[f"{way}, {row}"]
            loops = r["loops_per_s"]["median"]
            cells += [f"{r['p50_ms']['median']:.1f} ms", f"{loops / 1e6:.1f} M/s" if loops else ""]
        lines.append([title, *cells])
    return table("switch interval | eager | busy thread | `nogil` | busy thread", lines)


ON_CUDA = {
    "eager": "eager",
    "priority": "eager, `gil_priority()`",
    "compile": "`torch.compile`",
    "compile_graphs": '`torch.compile(mode="reduce-overhead")`',
    "nogil": "`nogil`, then `.cpu()`",
    "nogil_priority": "`nogil`, then `.cpu()`, in a block of `gil_priority()`",
}


def cuda_rows(rows: Any) -> list[str]:
    lines = []
    for row, title in ON_CUDA.items():
        figures = rows[row]
        cells = [
            f"{cell(figures, 'alone_answered_p50_s', 1e3, 2)} ms",
            milliseconds(figures["busy_answered_p50_s"]),
            milliseconds(figures["busy_answered_max_s"]),
            f"{cell(figures, 'busy_loops_per_s', 1e-6, 1)} M",
        ]
        lines.append([title, *cells])
    return table(
        "from the call to the answer on the host, p50 | alone | beside a busy Python thread | at most "
        "| its loops/s",
        lines,
    )


def cuda_sentence(rows: Any) -> list[str]:
    def ms(row: str, when: str) -> str:
        return milliseconds(rows[row][f"{when}_answered_p50_s"])

    return [
        f"On an H200 the same model answers in {ms('eager', 'alone')} alone and in {ms('eager', 'busy')} "
        f"beside the busy thread; with `gil_priority()` in {ms('priority', 'busy')}, `nogil` in such a block "
        f"in {ms('nogil_priority', 'busy')} ([docs/gil_priority.md](docs/gil_priority.md#on-a-gpu))."
    ]


def monitor_rows(rows: Any) -> list[str]:
    costs = {(r["watcher"], r["load"]): r["share_of_a_core"] for r in rows if "share_of_a_core" in r}
    lines = []
    for r in rows:
        if r["question"] != "share":
            continue
        cells = [r["load"]]
        for watcher in ("GilMonitor", "gilknocker", "a sleeper"):
            share = costs.get((watcher, r["load"]))
            cells.append(f"{100 * share['median']:.2f} %" if share else "")
        cells += [f"{100 * r[by]['median']:.1f} %" for by in ("monitor", "trace")]
        lines.append([*cells, f"{100 * r['off']['max']:.1f}", f"{100 * r['standard_error']['median']:.1f}"])
    heads = (
        "what runs | `GilMonitor`, of a core | gilknocker | a thread that only sleeps | held, by the monitor "
        "| by the trace "
        "| off at most, points | its standard error"
    )
    return table(heads, lines)


def hangs_rows(rows: Any) -> list[str]:
    titles = {
        "faulthandler": "`faulthandler.dump_traceback_later`",
        "py-spy": "`py-spy dump`, from outside",
        "gdb": "gdb, native stacks, from outside",
        "torchgil": "`Watchdog(hang=1.0)`",
    }
    lines = [
        [
            titles[r["tool"]],
            *(f"{r[key]} of {r['answers']}" for key in ("line", "holder", "does", "waits")),
            f"{shown(r['seconds'], 1e3, '.0f')} ms",
            f"{r['goes_on']} of {r['asked_to_go_on']}",
        ]
        for r in rows
    ]
    heads = (
        "| the Python line | who holds the GIL | what it does | who waits for the GIL | until it was said "
        "| went on afterwards"
    )
    return table(heads, lines)


def forward_tables(rows: Any) -> list[str]:
    lines = [
        "Beside: beside a busy Python thread, at the default switch interval of 5 ms and at 100 us. "
        f"A sleeping thread woke {rows['about']['wakeup_p50_s'] * 1e6:.0f} us late (p50).",
    ]
    dates = rows["about"].get("dates", {})  # where the models were not measured in one run
    for model, ways in rows["table"].items():
        lines += ["", *([f"Measured on {dates[model]}:", ""] if model in dates else [])]
        rows_of_model = []
        for way, figures in ways.items():
            cells = [
                cell(figures, "p50_s", 1e3, 2),
                cell(figures, "p99_s", 1e3, 2),
                *(cell(figures["per_second"], n, 1, 0) for n in ("1", "2", "4")),
                cell(figures, "busy_default_p50_s", 1e3, 2),
                cell(figures, "busy_100us_p50_s", 1e3, 2),
                cell(figures, "ticks_per_second", 1, 0),
                cell(figures, "peak_mib", 1, 1),
            ]
            rows_of_model.append([way, *cells])
        lines += table(
            f"{model} | p50 ms | p99 ms | calls/s, 1 thread | 2 threads | 4 threads "
            "| beside, 5 ms: p50 ms | 100 us | monitor ticks/s | peak MiB",
            rows_of_model,
        )
    return lines


GENERATE = {
    "eager": "eager, `DynamicCache`",
    "static": "eager, `StaticCache`",
    "generate": "`model.generate()`",
    "priority": "eager, `gil_priority()`",
    "compile": "`torch.compile`, `StaticCache`",
    "processes": "a process for each user, eager",
    "sessions": "sessions of `nogil`",
    "sessions, priority": "the same in a block of `gil_priority()`",
}


def generate_rows(rows: Any) -> list[str]:
    lines = []
    for way, title in GENERATE.items():
        of = {(r["users"], r["busy"]): r for r in rows if r["way"] == way}
        cells = [shown(of[users, False]["tokens_per_s"], 1, ".0f") for users in (1, 2, 4)]
        cells += [shown(of[users, True]["tokens_per_s"], 1, ".3g") for users in (1, 2)]
        cells += [
            f"{milliseconds(of[1, busy]['p50_s'])}; {milliseconds(of[1, busy]['p99_s'])}"
            for busy in (False, True)
        ]
        lines.append([title, *cells])
    return table(
        "tokens a second of all users | 1 user | 2 | 4 | beside a busy thread: 1 | 2 "
        "| from token to token, p50; p99: alone | beside",
        lines,
    )


# By the comment that stands before the table: the results' name and the part of them.
TABLES = {
    "generate": generate_rows,
    "monitor": monitor_rows,
    "hangs": hangs_rows,
    "cuda: sentence": cuda_sentence,
    "cuda": cuda_rows,
    "priority: works": priority_works_rows,
    "priority: crowds": priority_crowds_rows,
    "priority: work": priority_work_rows,
    "io": io_rows,
    "forward": forward_rows,
    "batching": batching_rows,
    "threads_vs_processes": compare_rows,
    "pool: workers": pool_workers_rows,
    "pool: interval": pool_interval_rows,
}
