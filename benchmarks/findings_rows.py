"""The calls that findings.py looks at: what each is, and how it is made ready."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
kept: list[Any] = []  # results that must not be freed within the call


def _square(n: int = 1200) -> torch.Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(0))


@row("eager", "`torch.mm(x, x)`, 1200x1200")
def mm() -> Call:
    x = _square()
    return lambda: torch.mm(x, x)


@row("eager", "`torch.add(a, b)`, 4x4, the result kept")
def add_kept() -> Call:
    a, b = torch.ones(4, 4), torch.ones(4, 4)
    return lambda: kept.append(torch.add(a, b))


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
    return lambda: kept.append(add(a, b))


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
    x = _square().requires_grad_()
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
    return lambda: kept.append(x[1])


@row("indexing", "`x[None, 1:5, ::2]`")
def index_view() -> Call:
    x = _square()
    return lambda: kept.append(x[None, 1:5, ::2])


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


class Chain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(8):
            x = torch.exp(torch.sin(x))  # one fused kernel
        return x


@row("TorchScript", "a traced module (deprecated: torch warns)")
def torch_script() -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(Chain(), _square(16))
    x = _square(1000)
    return lambda: module(x)


@row("compiled", "`torch.compile(model)(x)`")
def compile_default() -> Call:
    compiled = torch.compile(Chain())
    x = _square(2000)
    return lambda: compiled(x)


@row("compiled", '`torch.compile(model, options={"cpp_wrapper": True})(x)`')
def compile_cpp_wrapper() -> Call:
    torch._dynamo.reset()
    compiled = torch.compile(Chain(), options={"cpp_wrapper": True})
    x = _square(2000)
    return lambda: compiled(x)


@row("compiled", "`torch._inductor.aoti_load_package(path)(x)`")
def aot_inductor() -> Call:
    x = _square(2000)
    path = str(Path(_folder.name) / "model.pt2")
    torch._inductor.aoti_compile_and_package(torch.export.export(Chain(), (x,)), package_path=path)
    model = torch._inductor.aoti_load_package(path)
    return lambda: model(x)
