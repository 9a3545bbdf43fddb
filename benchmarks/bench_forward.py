"""Does a forward under one GIL release run alone as fast as eager, and beside others faster?

One process makes one model in one way (a row) and calls it: alone; from 1, 2 and 4 Python threads; beside a
busy Python thread at the default switch interval and at 100 us; beside a monitor that wants to wake every
0.5 ms. Every call is timed whole, arguments' checks included. Intra-op threads: 1.

What is unfair: `torch.compile`, AOTInductor and the inductor backend fuse operators, which eager and the
graph backend do not; `frozen` (the inductor backend with `freeze=True`) folds and packs weights as well, and
so does not see the model's any more, and ONNX Runtime does the same; `ThroughputBenchmark` calls a
TorchScript module from C++ threads and so is a limit, no peer. How much a busy thread hurts depends on how
fast threads wake on the machine: that is printed last.

The first run compiles (minutes): packages and Inductor's cache are kept under benchmarks/.cache. Run
`--prepare` first to keep compiling out of the measured rounds. Models that are not measured keep their
earlier results; `--append` adds rounds to those of a model that is.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parent / ".cache"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "inductor"))

import harness  # noqa: E402  # after the thread variables and the cache are set
import torch  # noqa: E402
from forward_models import MODELS, Model  # noqa: E402

import torchgil  # noqa: E402

ONNX = ("onnx", "onnx_priority")  # where its packages are installed
ROWS = (
    *("eager", "priority", "jit", "compile", "compile_cpp", "aoti"),
    *ONNX,
    *("graph", "inductor", "frozen", "limit"),
)
QUICK = ("eager", "priority", "graph")
Call = Callable[..., Any]


def make(row: str, model: Model) -> Call:
    """The model as one row calls it."""
    torch.manual_seed(0)
    module, example = model.make().eval(), model.inputs(0)
    if row == "eager":
        return inference(module)
    if row == "priority":
        return torchgil.gil_priority()(inference(module))
    if row == "jit":
        return inference(torch.jit.freeze(torch.jit.trace(module, example)))
    if row in ("compile", "compile_cpp"):
        torch._inductor.config.cpp_wrapper = row == "compile_cpp"
        return inference(torch.compile(module, dynamic=model.dynamic_shapes is not None))
    if row == "onnx":
        return onnx_session(module, model)
    if row == "onnx_priority":
        return torchgil.gil_priority()(onnx_session(module, model))
    if row == "graph":
        return torchgil.nogil(module, example, dynamic_shapes=model.dynamic_shapes)
    inductor = torchgil.nogil(
        module,
        example,
        dynamic_shapes=model.dynamic_shapes,
        backend="inductor",
        cache_dir=CACHE / "packages",
        freeze=row == "frozen",
    )
    if row in ("inductor", "frozen"):
        return inductor
    package = inductor.path  # the same package, through torch's own loader
    del inductor
    return inference(torch._inductor.aoti_load_package(package))


def onnx_session(module: torch.nn.Module, model: Model) -> Call:
    """ONNX Runtime over what torch.onnx exports. Tensors and its arrays share their memory."""
    import onnxruntime

    example = model.inputs(0)
    program = torch.onnx.export(
        module, example, dynamo=True, dynamic_shapes=model.dynamic_shapes, verbose=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]

    def run(*args: Any) -> Any:
        arrays = [tensor.numpy() for tensor in args]
        return [torch.from_numpy(a) for a in session.run(None, dict(zip(names, arrays, strict=True)))]

    with torch.inference_mode():  # else it would be no peer
        torch.testing.assert_close(run(*example)[0], module(*example), rtol=1e-3, atol=1e-4)
    return run


def inference(function: Call) -> Call:
    """What nogil does by itself."""

    def run(*args: Any) -> Any:
        with torch.inference_mode():
            return function(*args)

    return run


def timed(call: Call, inputs: Sequence[Any], seconds: float, least: int) -> list[float]:
    """Seconds of each call, for so long and at least so often."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        args = inputs[len(times) % len(inputs)]
        started = time.perf_counter()
        result = call(*args)
        times.append(time.perf_counter() - started)
        del result
    return times


def throughput(call: Call, inputs: Sequence[Any], threads: int, seconds: float) -> float:
    """Calls per second of all threads together, from the first one's start to the last one's end.

    Where the GIL is let go only for moments, one thread can keep another from starting until it is done.
    """
    start = threading.Barrier(threads)
    spans = []

    def work() -> None:
        timed(call, inputs, 0, 10)
        start.wait()
        started = time.perf_counter()
        calls = len(timed(call, inputs, seconds, 5))
        spans.append((calls, started, time.perf_counter()))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    calls, starts, ends = zip(*spans, strict=True)
    return float(sum(calls) / (max(ends) - min(starts)))


class Beside:
    """Python threads that are busy while one lives, or a monitor that wakes every 0.5 ms."""

    def __init__(self, monitor: bool, threads: int = 1) -> None:
        self._ticks = [0] * threads  # of each
        self._stop = False
        self._monitor = monitor
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    @property
    def ticks(self) -> int:
        """What all of them did so far."""
        return sum(self._ticks)

    def _run(self, i: int) -> None:
        while not self._stop:
            if self._monitor:
                time.sleep(0.0005)
            self._ticks[i] += 1

    def __enter__(self) -> Beside:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()


def peak_memory(call: Call, inputs: Sequence[Any]) -> float | None:
    """MiB that a call takes at most above what the process holds at rest."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: freed tensors go back to the system
        timed(call, inputs, 0, 5)
        libc.malloc_trim(0)
        status = Path("/proc/self/status")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        rest = field(status.read_text(), "VmRSS")
        timed(call, inputs, 0, 20)
        return (field(status.read_text(), "VmHWM") - rest) / 1024
    except OSError:
        return None


def field(status: str, name: str) -> float:
    return float(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def child(configuration: dict[str, Any]) -> dict[str, Any]:
    """All figures of one row for one model."""
    torch.set_num_threads(1)
    model = MODELS[configuration["model"]]
    row, scale = configuration["row"], configuration["scale"]
    inputs = [model.inputs(seed) for seed in range(8)]
    if row == "limit":
        return limit(model, inputs, scale)
    call = make(row, model)
    timed(call, inputs, 0.3 * scale, 20)
    if configuration.get("prepare"):
        return {}
    alone = timed(call, inputs, 1.0 * scale, 30)
    result: dict[str, Any] = {
        "p50_s": harness.quantile(alone, 0.5),
        "p99_s": harness.quantile(alone, 0.99),
        "per_second": {str(n): throughput(call, inputs, n, 0.8 * scale) for n in (1, 2, 4)},
    }
    for name, interval in (("default", sys.getswitchinterval()), ("100us", 1e-4)):
        with torchgil.switch_interval(interval), Beside(monitor=False):
            times = timed(call, inputs, 1.5 * scale, 5)
        result[f"busy_{name}_p50_s"] = harness.quantile(times, 0.5)
        result[f"busy_{name}_max_s"] = max(times)
    with Beside(monitor=True) as monitor:
        started = time.perf_counter()
        timed(call, inputs, 1.0 * scale, 5)
        result["ticks_per_second"] = monitor.ticks / (time.perf_counter() - started)
    result["peak_mib"] = peak_memory(call, inputs)
    return result


def limit(model: Model, inputs: Sequence[Any], scale: float) -> dict[str, Any]:
    """TorchScript called by torch's own C++ threads."""
    module = torch.jit.freeze(torch.jit.trace(model.make().eval(), model.inputs(0)))
    bench = torch.utils.ThroughputBenchmark(module)
    for args in inputs:
        bench.add_input(*args)
    rates = {}
    for threads in (1, 2, 4):
        stats = bench.benchmark(
            num_calling_threads=threads, num_warmup_iters=50, num_iters=int(400 * scale) + 50
        )
        rates[str(threads)] = stats.iters_per_second
    return {"p50_s": 1 / rates["1"], "per_second": rates}


def overhead() -> dict[str, float]:
    """What the interpreter itself costs: an arithmetic instruction, and a view more than from C++.

    `view_direct_s` is `x.view(4)` in a C++ loop: the dispatcher, the kernel and the new tensor, but
    no boxing, slots and instruction list. The rest of `view_instruction_s` is the interpreter's own.
    """

    class Arithmetic(torch.nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n = x.shape[0]
            for _ in range(self.count):
                n = n + 1
            return x + n

    class Views(Arithmetic):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.count):
                x = x.view(4)
            return x

    figures = {}
    for name, cls, dynamic in (
        ("arithmetic", Arithmetic, {"x": {0: torch.export.Dim.DYNAMIC}}),
        ("view", Views, None),
    ):
        x, costs = torch.zeros(4), []
        few, many = (torchgil.nogil(cls(n).eval(), (x,), dynamic_shapes=dynamic) for n in (1, 201))
        for _ in range(7):
            a, b = (harness.quantile(timed(f, [(x,)], 0, 2000), 0.5) for f in (few, many))
            costs.append((b - a) / 200)
        figures[f"{name}_instruction_s"] = min(costs)
        figures[f"{name}_call_s"] = harness.quantile(timed(few, [(x,)], 0, 2000), 0.5)
    with tempfile.TemporaryDirectory() as folder:
        harness.compile_cpp("dispatch_cost.cpp", folder)
        sys.path.insert(0, folder)
        import dispatch_cost

        figures["view_direct_s"] = min(
            dispatch_cost.seconds_per_view(torch.zeros(4), 400_000) for _ in range(7)
        )
        sys.path.remove(folder)
    figures["view_interpreter_s"] = figures["view_instruction_s"] - figures["view_direct_s"]
    return figures


def merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and extremes of every figure over the rounds."""
    merged: dict[str, Any] = {}
    for key, first in rounds[0].items():
        values = [r[key] for r in rounds]
        if isinstance(first, dict):
            merged[key] = merge(values)
        elif first is not None:
            merged[key] = harness.spread(values)
    return merged


def parent(options: argparse.Namespace) -> None:
    """Measures what is asked for, and prints the table."""
    target = Path(options.json) if options.json else harness.RESULTS / "forward.json"
    before = json.loads(target.read_text())["rows"] if target.exists() else {"rounds": {}, "about": {}}
    raw, dates = before["rounds"], before["about"].get("dates", {})  # other models stay
    scale = 0.2 if options.quick else 1.0
    options.models = options.models or (["transformer"] if options.quick else list(MODELS))
    options.rows = options.rows or list(QUICK if options.quick else ROWS)
    peers = harness.versions("onnxruntime", "onnxscript")
    options.rows = with_peers(options, peers)
    for name in options.models:
        configurations = {
            row: {"model": name, "row": row, "scale": scale, "prepare": options.prepare}
            for row in options.rows
        }
        results = harness.interleave(
            __file__, configurations, rounds=1 if options.prepare else options.rounds
        )
        if not options.append:
            raw[name] = {}
        for row, measured in results.items():
            raw.setdefault(name, {}).setdefault(row, []).extend(measured)
        dates[name] = datetime.date.today().isoformat()
    if options.prepare:
        return
    table = {name: {row: merge(rounds) for row, rounds in rows.items()} for name, rows in raw.items()}
    about = {"wakeup_p50_s": wakeup(), "overhead": overhead(), "dates": dates}
    path = harness.save("forward", {"table": table, "about": about, "rounds": raw}, str(target), peers=peers)
    show(table, about)
    print(f"-> {path}")


def with_peers(options: argparse.Namespace, peers: dict[str, str | None]) -> list[str]:
    """The rows that can be measured here; see `harness.stay_where_missing`."""
    rows: list[str] = options.rows
    if not {*ONNX} & {*rows}:
        return rows
    harness.stay_where_missing(options, peers)
    if None not in peers.values():
        return rows
    print("not measured: ONNX Runtime; pip install 'torchgil[bench]'")
    return [row for row in rows if row not in ONNX]


def wakeup() -> float:
    """p50 of how late a sleeping thread wakes: what decides how much a busy thread hurts."""
    late = []
    for _ in range(200):
        started = time.perf_counter()
        time.sleep(0.0002)
        late.append(time.perf_counter() - started - 0.0002)
    return harness.quantile(late, 0.5)


def show(table: dict[str, Any], about: dict[str, Any]) -> None:
    """The budgets' columns, each as a ratio beside its figure."""
    for name, rows in table.items():
        print(f"\n{name:12}  p50 ms  /eager  p99 ms  1->2 threads  busy ms  busy 100us  ticks/s  peak MiB")
        eager = rows.get("eager", {}).get("p50_s", {}).get("median")
        for row, figures in rows.items():

            def ms(key: str, figures: dict[str, Any] = figures) -> str:
                return f"{figures[key]['median'] * 1e3:8.2f}" if key in figures else "       -"

            p50, rate = figures["p50_s"]["median"], figures["per_second"]
            ratio = f"{p50 / eager:7.2f}" if eager else "      -"
            two = rate["2"]["median"] / rate["1"]["median"]
            ticks = (
                f"{figures['ticks_per_second']['median']:8.0f}"
                if "ticks_per_second" in figures
                else "       -"
            )
            peak = f"{figures['peak_mib']['median']:9.1f}" if "peak_mib" in figures else "        -"
            print(
                f"{row:12}{ms('p50_s')} {ratio}{ms('p99_s')} {two:12.2f}x{ms('busy_default_p50_s')}"
                f"   {ms('busy_100us_p50_s')} {ticks} {peak}"
            )
    per = about["overhead"]
    print(
        f"\none arithmetic instruction {per['arithmetic_instruction_s'] * 1e9:.0f} ns, one view over the "
        f"dispatcher {per['view_instruction_s'] * 1e9:.0f} ns, "
        f"{per['view_interpreter_s'] * 1e9:.0f} ns more than in a C++ loop, a call of one view "
        f"{per['view_call_s'] * 1e6:.2f} us; a sleeper wakes {about['wakeup_p50_s'] * 1e6:.0f} us late (p50)"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, help="which models (default all; with --quick the transformer)"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        help=f"which ways to run them (default all; with --quick {', '.join(QUICK)})",
    )
    parser.add_argument("--prepare", action="store_true", help="only compile, and keep it")
    parser.add_argument("--append", action="store_true", help="add rounds to the results there are")


if __name__ == "__main__":
    harness.main(__doc__, child, parent, add_options)
