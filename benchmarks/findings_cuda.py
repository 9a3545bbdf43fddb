"""The calls on a GPU that findings.py looks at, where an op is queued and somebody waits at a sync point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from findings_rows import Call, Chain, kept, row

GROUP = "CUDA"


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


@row(GROUP, "`torch.mm(x, x)`, 64x64, queued only")
def cuda_queue() -> Call:
    x = torch.randn(64, 64, device="cuda")
    return lambda: kept.append(torch.mm(x, x))


@row(GROUP, "four products queued, then `.cpu()` of 8192x8192")
def cuda_cpu() -> Call:
    return _waited(lambda y: y.cpu())


@row(GROUP, "the same, then `.item()` of one element")
def cuda_item() -> Call:
    return _waited(lambda y: y[0, 0].item())


@row(GROUP, "the same, then `.tolist()` of one row")
def cuda_tolist() -> Call:
    return _waited(lambda y: y[0].tolist())


@row(GROUP, "the same, then `y.nonzero()`, whose size is known only then")
def cuda_nonzero() -> Call:
    return _waited(lambda y: y.nonzero())


@row(GROUP, "the same, then `if y[0, 0] > 2: ...`")
def cuda_bool() -> Call:
    return _waited(lambda y: bool(y[0, 0] > 2))


@row(GROUP, "the same, then `torch.cuda.synchronize()`")
def cuda_synchronize() -> Call:
    return _waited(lambda y: torch.cuda.synchronize())


@row(GROUP, "the same, then `torch.cuda.current_stream().synchronize()`")
def cuda_stream() -> Call:
    return _waited(lambda y: torch.cuda.current_stream().synchronize())


@row(GROUP, "the same, then `event.synchronize()`")
def cuda_event() -> Call:
    def sync(_: torch.Tensor) -> None:
        event = torch.cuda.Event()
        event.record()
        event.synchronize()

    return _waited(sync)


@row(GROUP, "`x.to('cuda')`, 400 MB, pageable")
def cuda_upload() -> Call:
    x = torch.zeros(100_000_000)
    return lambda: x.to("cuda")


@row(GROUP, "`x.pin_memory()`, 400 MB")
def cuda_pin() -> Call:
    x = torch.zeros(100_000_000)
    return lambda: x.pin_memory()


@row(GROUP, "`torch.empty(n, device='cuda')` after `torch.cuda.empty_cache()`, 4 GB: cudaMalloc")
def cuda_malloc() -> Call:
    def call() -> None:
        torch.cuda.empty_cache()
        torch.empty(1_000_000_000, device="cuda")

    return call


@row(GROUP, "`graph.replay()` of 200 captured products of 512x512, then `synchronize()`")
def cuda_graph() -> Call:
    x = torch.randn(512, 512, device="cuda") / 512
    torch.mm(x, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x
        for _ in range(200):
            y = torch.mm(x, y)
    kept.append(y)

    def call() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return call


@row(GROUP, "`torch.compile(model)(x)`, queued only: Triton's launchers")
def cuda_compile() -> Call:
    torch._dynamo.reset()
    compiled = torch.compile(Chain())
    x = torch.randn(256, 256, device="cuda")
    return lambda: compiled(x)
