"""On a CUDA device, where work is queued and somebody waits for it: every part of torchgil once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchgil
from tests.conftest import in_threads
from tests.forward.comparing import assert_same, reference
from torchgil._torch_half import C

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

POLICIES = pytest.mark.parametrize("policy", ["released", "held", "adaptive"])


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval().cuda()


def queue_products(n: int = 8192, count: int = 8) -> Tensor:
    """Some 20 ms of work on a large GPU, more on a smaller one; returns before it is done."""
    x = torch.randn(n, n, device="cuda") / n
    result = x
    for _ in range(count):
        result = torch.mm(x, result)
    return result


def call_on_streams_of_their_own(check: Callable[[], None], threads: int = 4, calls: int = 50) -> None:
    """What is checked compares on the stream that it was queued on, and so waits for it."""

    def work(_: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(calls):
                check()

    torch.cuda.synchronize()
    in_threads(work, threads)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Libraries are loaded at the first product, with the GIL held or not: no test is about that."""
    queue_products(256).sum().item()


@POLICIES
def test_the_ops_run_there(policy: str) -> None:
    ops = getattr(torchgil, policy)
    a, b = torch.randn(64, 32, device="cuda"), torch.randn(64, 32, device="cuda")
    weight = torch.randn(32, device="cuda", requires_grad=True)
    torch.testing.assert_close(ops.add(a, b, alpha=2), a + 2 * b)
    torch.testing.assert_close(ops.matmul(a, b.T), a @ b.T)
    normed = ops.rms_norm(a, weight, eps=1e-6)
    torch.testing.assert_close(normed, nn.functional.rms_norm(a, (32,), weight, 1e-6))
    normed.sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_cuda
    with pytest.raises(NotImplementedError, match="only a CPU kernel exists, got boxes on cuda:0"):
        ops.nms(torch.rand(3, 4).cuda(), torch.rand(3).cuda(), 0.5)


@pytest.mark.parametrize(
    "sync",
    [
        lambda y: y.cpu(),
        lambda y: y[0, 0].item(),
        lambda y: torch.cuda.synchronize(),
        lambda y: torch.cuda.current_stream().synchronize(),
    ],
    ids=["cpu", "item", "synchronize", "stream"],
)
def test_who_waits_at_a_sync_point_lets_the_gil_go(sync: Any) -> None:
    audit = torchgil.audit(lambda: sync(queue_products()))
    assert audit.verdict == "releases", str(audit)
    assert audit.wall_s > 5e-3, "nothing was waited for"


def test_a_program_runs_on_the_current_stream() -> None:
    x = torch.randn(2, 8, device="cuda")
    program = torch.export.export(mlp(), (x,))
    forward, want = torchgil.nogil(program), reference(program)(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        queue_products()
        got = forward(x)
        done = stream.record_event()
    # Behind the products on that stream, not beside them on the default one.
    assert not done.query(), "the products were done too early to tell"
    torch.cuda.default_stream().synchronize()
    assert not done.query(), "the program did not run on the current stream"
    done.synchronize()
    assert_same(got, want)
    with pytest.raises(ValueError, match=r"'input' was exported as .* on cuda:0, got .* on cpu: its device"):
        forward(x.cpu())


def test_a_program_queues_under_one_release_and_does_not_wait() -> None:
    x = torch.randn(2, 8, device="cuda")
    forward = torchgil.nogil(mlp(), (x,))
    forward(x)
    before = C.forward_releases()
    results = [forward(x) for _ in range(10)]
    assert C.forward_releases() - before == 10
    waiting = queue_products()
    done = torch.cuda.Event()
    results.append(forward(x))
    done.record()
    assert not done.query(), "a call waited for the device"
    done.synchronize()
    del waiting
    assert_same(results[-1], results[0])


def test_weights_are_shared_and_threads_with_a_stream_each_agree() -> None:
    model, x = mlp(), torch.randn(32, 8, device="cuda")
    forward = torchgil.nogil(model, (x,))
    want = forward(x)

    call_on_streams_of_their_own(lambda: assert_same(forward(x), want))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not forward(x).any()


def test_an_error_of_a_kernel_is_an_exception_and_the_gil_is_held() -> None:
    class Big(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_empty(1 << 50)

    x = torch.zeros(2, device="cuda")
    forward = torchgil.nogil(Big(), (x,))
    for _ in range(20):
        with pytest.raises(torch.OutOfMemoryError):
            forward(x)
    assert torchgil.nogil(mlp(), (torch.zeros(2, 8, device="cuda"),))(x.new_zeros(2, 8)).is_cuda


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
def test_packages_run_there_and_say_what_they_were_compiled_for(tmp_path: Path) -> None:
    x = torch.randn(2, 8, device="cuda")
    model = mlp()
    package = torchgil.nogil(model, (x,), backend="inductor", cache_dir=tmp_path)
    torch.testing.assert_close(package(x), model(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="cpu"):
        package(x.cpu())
    again = torchgil.load_package(package.path)
    want = again(x)
    call_on_streams_of_their_own(lambda: torch.testing.assert_close(again(x), want))


def test_a_batcher_serves_it() -> None:
    model = mlp()

    def serve(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(batch.cuda()).cpu()

    rows = torch.randn(200, 8)
    with torchgil.Batcher(serve, max_batch_size=16, concurrency=2) as batcher:
        results = [f.result(30) for f in [batcher.submit(row) for row in rows.split(1)]]
    torch.testing.assert_close(torch.cat(results), serve(rows), rtol=1e-3, atol=1e-3)


def test_the_trace_tells_queueing_from_waiting() -> None:
    with torchgil.trace() as traced:
        result = queue_products()
        result[0, 0].item()
    report = traced.report()
    ops = {op.name: op for op in report.ops}
    assert ops["aten::_local_scalar_dense"].wall_s > ops["aten::mm"].wall_s
    (mine,) = [t for t in report.threads if t.name == "MainThread"]
    assert mine.free_s > 0.5 * mine.wall_s


def test_a_wait_for_the_device_is_no_hold() -> None:
    seen: list[Any] = []
    with torchgil.Watchdog(threshold=0.02, on_hold=seen.append):
        for _ in range(3):
            queue_products(count=24).cpu()
        torchgil.held.sleep(0.3)  # the control: the watchdog was awake
    (control,) = [hold for hold in seen if hold.duration_s > 0.1]
    assert control.function == "test_a_wait_for_the_device_is_no_hold", seen


def test_priority_gets_the_gil_back_beside_a_busy_thread() -> None:
    x, started, stop = torch.randn(2048, 2048, device="cuda"), threading.Event(), threading.Event()

    def busy() -> None:
        started.set()
        while not stop.is_set():
            pass

    def chain() -> float:
        began = time.perf_counter()
        for _ in range(20):
            torch.mm(x, x)
            torch.cuda.synchronize()  # long enough that the neighbour wakes and takes the GIL
        return time.perf_counter() - began

    chain()
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(busy)
        try:
            assert started.wait(60)
            plain = sorted(chain() for _ in range(5))[2]
            with torchgil.gil_priority():
                asked = sorted(chain() for _ in range(5))[2]
        finally:
            stop.set()
        neighbour.result()
    # Not how fast it is, but that it is another kind of wait: each of 20 and more windows cost an interval.
    assert asked < plain / 2
