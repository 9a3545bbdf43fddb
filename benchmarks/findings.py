"""What torch does about the GIL, path by path: the rows of docs/findings.md.

    python benchmarks/findings.py                 # every row (the compiled ones take a minute; those of a
                                                  # GPU only where there is one)
    python benchmarks/findings.py load_path mm    # these rows
    python benchmarks/findings.py --list

All rows together are kept as results/findings/TORCH.json, those of a GPU as results/findings_cuda.json,
from which plots.py makes the page: a column of it for each torch that this ran with.

Each row is the median, by how free the GIL was, of five calls under torchgil.audit, after two to warm
it up, in this process and with nothing else going on in it. "releases" counts the release windows of
one call.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import findings_page
import harness
import torch

import torchgil

Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    name: str
    group: str
    what: str
    prepare: Callable[[], Call]


ROWS: list[Row] = []


def row(group: str, what: str) -> Callable[[Callable[[], Call]], Callable[[], Call]]:
    def add(prepare: Callable[[], Call]) -> Callable[[], Call]:
        ROWS.append(Row(prepare.__name__, group, what, prepare))
        return prepare

    return add


_folder = tempfile.TemporaryDirectory()
_kept: list[Any] = []  # results that must not be freed within the call


def _square(n: int = 1200) -> torch.Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(0))


@row("eager", "`torch.mm(x, x)`, 1200x1200")
def mm() -> Call:
    x = _square()
    return lambda: torch.mm(x, x)


@row("eager", "`torch.add(a, b)`, 4x4, the result kept")
def add_kept() -> Call:
    a, b = torch.ones(4, 4), torch.ones(4, 4)
    return lambda: _kept.append(torch.add(a, b))


@row("eager", "`torch.add(a, b)`, 4x4, the result freed")
def add_freed() -> Call:
    a, b = torch.ones(4, 4), torch.ones(4, 4)

    def call() -> None:
        torch.add(a, b)

    return call


@row("eager", "`a + b`, 4x4, the result freed")
def add_operator() -> Call:
    a = torch.ones(4, 4)
    b = torch.ones(4, 4)

    def call() -> None:
        _ = a + b

    return call


@row("eager", "`x.add_(y)`, 1200x1200, in place")
def add_in_place() -> Call:
    x = _square()
    return lambda: x.add_(x)


@row("eager", "`F.conv2d`, 4x32x160x160")
def conv2d() -> Call:
    module = torch.nn.Conv2d(32, 64, 3)
    x = torch.randn(4, 32, 160, 160)
    return lambda: module(x)


@row("eager", "`x.to(torch.float64)`, 16 M elements")
def to_dtype() -> Call:
    x = torch.zeros(16_000_000)
    return lambda: x.to(torch.float64)


@row("`torch.ops`", "`torch.ops.aten.mm.default(x, x)`, 1200x1200")
def ops_mm() -> Call:
    x = _square()
    return lambda: torch.ops.aten.mm.default(x, x)


@row("`torch.ops`", "`torch.ops.aten.add.Tensor(a, b)`, 4x4, the result kept")
def ops_add_kept() -> Call:
    a, b = torch.ones(4, 4), torch.ones(4, 4)
    add = torch.ops.aten.add.Tensor
    return lambda: _kept.append(add(a, b))


@row("`torch.ops`", "`torch.ops.aten.add.Tensor(a, b)`, 4x4, the result freed")
def ops_add_freed() -> Call:
    a, b = torch.ones(4, 4), torch.ones(4, 4)
    add = torch.ops.aten.add.Tensor

    def call() -> None:
        add(a, b)

    return call


@row("`torch.ops`", "an op registered with `torch.library.custom_op`, its body `sorted(list)`")
def custom_op() -> Call:
    numbers = list(range(2_000_000, 0, -1))

    @torch.library.custom_op("torchgil_findings::sorted", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        sorted(numbers)
        return x.clone()

    x = torch.ones(4)
    return lambda: op(x)


@row("autograd", "`loss.backward()`")
def backward() -> Call:
    x = _square(1000).requires_grad_()
    loss = (x @ x).relu().sum()
    return lambda: loss.backward(retain_graph=True)


@row("autograd", "`loss.backward()` with a hook in Python that runs `sorted(list)`")
def backward_hook() -> Call:
    numbers = list(range(2_000_000, 0, -1))
    x = _square(200).requires_grad_()
    x.register_hook(lambda grad: sorted(numbers) and None)
    loss = (x @ x).relu().sum()
    return lambda: loss.backward(retain_graph=True)


@row("lists", "`torch.tensor(list)`, 1.5 M floats")
def tensor_of_list() -> Call:
    numbers = [float(i) for i in range(1_500_000)]
    return lambda: torch.tensor(numbers)


@row("lists", "`x.tolist()`, 3 M floats")
def tolist() -> Call:
    x = torch.randn(3_000_000)
    return lambda: x.tolist()


@row("lists", "`torch.tensor(ndarray)`, 40 M doubles")
def tensor_of_array() -> Call:
    import numpy as np

    x = np.zeros(40_000_000)
    return lambda: torch.tensor(x)


@row("lists", "`x.item()`")
def item() -> Call:
    x = torch.ones(())
    return lambda: x.item()


@row("lists", "`repr(x)`, 1000x1000")
def tensor_repr() -> Call:
    x = _square(1000)
    return lambda: repr(x)


@row("indexing", "`x[1]`")
def index_int() -> Call:
    x = _square()
    return lambda: _kept.append(x[1])


@row("indexing", "`x[None, 1:5, ::2]`")
def index_view() -> Call:
    x = _square()
    return lambda: _kept.append(x[None, 1:5, ::2])


@row("indexing", "`x[i]`, 4 M rows by an index tensor")
def index_tensor() -> Call:
    x = torch.randn(4_000_000, 2)
    i = torch.randperm(4_000_000)
    return lambda: x[i]


@row("indexing", "`x[i] = y`, 4 M rows by an index tensor")
def index_put() -> Call:
    x = torch.randn(4_000_000, 2)
    y = torch.randn(4_000_000, 2)
    i = torch.randperm(4_000_000)
    return lambda: x.__setitem__(i, y)


def _saved() -> Path:
    path = Path(_folder.name) / "x.pt"
    if not path.exists():
        torch.save(torch.zeros(25_000_000), path)
    return path


@row("load and save", "`torch.load(path)`, 100 MB")
def load_path() -> Call:
    path = _saved()
    return lambda: torch.load(path)


@row("load and save", "`torch.load(path, mmap=True)`, 100 MB")
def load_mmap() -> Call:
    path = _saved()
    return lambda: torch.load(path, mmap=True)


@row("load and save", "`torch.load(BytesIO)`, 100 MB")
def load_bytes() -> Call:
    data = _saved().read_bytes()
    return lambda: torch.load(io.BytesIO(data))


@row("load and save", "`torch.save(x, path)`, 100 MB")
def save_path() -> Call:
    x = torch.zeros(25_000_000)
    path = Path(_folder.name) / "y.pt"
    return lambda: torch.save(x, path)


@row("load and save", "`torch.save(x, BytesIO)`, 100 MB")
def save_bytes() -> Call:
    x = torch.zeros(25_000_000)
    return lambda: torch.save(x, io.BytesIO())


class _Chain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(8):
            x = torch.exp(torch.sin(x))  # one fused kernel
        return x


@row("TorchScript", "a traced module (deprecated: torch warns)")
def torch_script() -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(_Chain(), _square(16))
    x = _square(1000)
    return lambda: module(x)


@row("compiled", "`torch.compile(model)(x)`")
def compile_default() -> Call:
    compiled = torch.compile(_Chain())
    x = _square(2000)
    return lambda: compiled(x)


@row("compiled", '`torch.compile(model, options={"cpp_wrapper": True})(x)`')
def compile_cpp_wrapper() -> Call:
    torch._dynamo.reset()
    compiled = torch.compile(_Chain(), options={"cpp_wrapper": True})
    x = _square(2000)
    return lambda: compiled(x)


@row("compiled", "`torch._inductor.aoti_load_package(path)(x)`")
def aot_inductor() -> Call:
    x = _square(2000)
    path = str(Path(_folder.name) / "model.pt2")
    torch._inductor.aoti_compile_and_package(torch.export.export(_Chain(), (x,)), package_path=path)
    model = torch._inductor.aoti_load_package(path)
    return lambda: model(x)


# On a GPU an op is queued, and somebody waits at a sync point: who holds the GIL then?


def _products(n: int = 8192, queued: int = 4) -> Call:
    """Queues some 10 ms of work and more for the device."""
    x = torch.randn(n, n, device="cuda") / n

    def queue() -> torch.Tensor:
        result = x
        for _ in range(queued):
            result = torch.mm(x, result)
        return result

    torch.cuda.synchronize()
    return queue


def _waited(sync: Callable[[torch.Tensor], Any]) -> Call:
    queue = _products()
    return lambda: sync(queue())


@row("CUDA", "`torch.mm(x, x)`, 64x64, queued only")
def cuda_queue() -> Call:
    x = torch.randn(64, 64, device="cuda")
    return lambda: _kept.append(torch.mm(x, x))


@row("CUDA", "four products queued, then `.cpu()` of 8192x8192")
def cuda_cpu() -> Call:
    return _waited(lambda y: y.cpu())


@row("CUDA", "the same, then `.item()` of one element")
def cuda_item() -> Call:
    return _waited(lambda y: y[0, 0].item())


@row("CUDA", "the same, then `.tolist()` of one row")
def cuda_tolist() -> Call:
    return _waited(lambda y: y[0].tolist())


@row("CUDA", "the same, then `y.nonzero()`, whose size is known only then")
def cuda_nonzero() -> Call:
    return _waited(lambda y: y.nonzero())


@row("CUDA", "the same, then `if y[0, 0] > 2: ...`")
def cuda_bool() -> Call:
    return _waited(lambda y: bool(y[0, 0] > 2))


@row("CUDA", "the same, then `torch.cuda.synchronize()`")
def cuda_synchronize() -> Call:
    return _waited(lambda y: torch.cuda.synchronize())


@row("CUDA", "the same, then `torch.cuda.current_stream().synchronize()`")
def cuda_stream() -> Call:
    return _waited(lambda y: torch.cuda.current_stream().synchronize())


@row("CUDA", "the same, then `event.synchronize()`")
def cuda_event() -> Call:
    def sync(_: torch.Tensor) -> None:
        event = torch.cuda.Event()
        event.record()
        event.synchronize()

    return _waited(sync)


@row("CUDA", "`x.to('cuda')`, 400 MB, pageable")
def cuda_upload() -> Call:
    x = torch.zeros(100_000_000)
    return lambda: x.to("cuda")


@row("CUDA", "`x.pin_memory()`, 400 MB")
def cuda_pin() -> Call:
    x = torch.zeros(100_000_000)
    return lambda: x.pin_memory()


@row("CUDA", "`torch.empty(n, device='cuda')` after `torch.cuda.empty_cache()`, 4 GB: cudaMalloc")
def cuda_malloc() -> Call:
    def call() -> None:
        torch.cuda.empty_cache()
        torch.empty(1_000_000_000, device="cuda")

    return call


@row("CUDA", "`graph.replay()` of 200 captured products of 512x512, then `synchronize()`")
def cuda_graph() -> Call:
    x = torch.randn(512, 512, device="cuda") / 512
    torch.mm(x, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x
        for _ in range(200):
            y = torch.mm(x, y)
    _kept.append(y)

    def call() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return call


@row("CUDA", "`torch.compile(model)(x)`, queued only: Triton's launchers")
def cuda_compile() -> Call:
    torch._dynamo.reset()
    compiled = torch.compile(_Chain())
    x = torch.randn(256, 256, device="cuda")
    return lambda: compiled(x)


def judge(r: Row) -> dict[str, Any]:
    call = r.prepare()
    call()
    call()
    audits = sorted((torchgil.audit(call) for _ in range(5)), key=lambda a: a.free_fraction)
    a = audits[len(audits) // 2]
    held = [op.name for op in a.report.ops if op.calls_held and not op.name.startswith("Torch")]
    return {
        "name": r.name,
        "group": r.group,
        "what": r.what,
        "verdict": a.verdict,
        "free_fraction": a.free_fraction,
        "wall_s": a.wall_s,
        "releases": a.releases,
        "longest_hold_s": a.longest_hold_s,
        "ops_entered_held": held,
    }


def here(r: Row) -> bool:
    return r.group != "CUDA" or torch.cuda.is_available()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="names of rows (default: all)")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--json", metavar="FILE", help="where to write all rows (default results/findings/)")
    options = parser.parse_args()
    names = {r.name for r in ROWS}
    if unknown := set(options.rows) - names:
        parser.error(f"no row {', '.join(sorted(unknown))}; --list names them")
    if options.list:
        print("\n".join(f"{r.name:20} {r.what}" for r in ROWS))
        return
    done = []
    for r in ROWS:
        if r.name in options.rows or (not options.rows and here(r)):
            harness.progress(r.name)
            done.append(judge(r))
    harness.progress("")
    print("\n".join(findings_page.details(done)))
    if options.json:
        print(f"written: {harness.save('findings', done, options.json)}", file=sys.stderr)
    elif not options.rows:
        name = torch.__version__.split("+")[0]
        harness.save(
            "findings", [r for r in done if r["group"] != "CUDA"], f"{findings_page.FOLDER}/{name}.json"
        )
        if on_cuda := [r for r in done if r["group"] == "CUDA"]:
            harness.save("findings_cuda", on_cuda)


if __name__ == "__main__":
    main()
