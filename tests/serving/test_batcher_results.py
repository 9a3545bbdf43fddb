"""What a caller holds: rows that are its own memory, and an error that is its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import threading

import pytest
import torch

import torchgil
from tests.serving.conftest import wait_until


def answers(fn, requests, **options):
    """The outcomes of one batch."""
    rows = sum(len(request) for request in requests)
    with torchgil.Batcher(fn, max_batch_size=rows, max_delay=60, **options) as batcher:
        futures = [batcher.submit(request) for request in requests]
        concurrent.futures.wait(futures, timeout=60)
        assert batcher.stats().batch_rows == {rows: 1}
        return futures


ROWS = [torch.randn(1, 256) for _ in range(32)]


def test_a_row_of_a_batch_owns_its_memory_and_pickles_alone():
    for row, future in zip(ROWS, answers(lambda x: {"y": x * 2, "z": (x[:, :4],)}, ROWS), strict=True):
        result = future.result(0)
        assert torch.equal(result["y"], row * 2)
        assert torch.equal(result["z"][0], row[:, :4])
        assert result["y"].untyped_storage().nbytes() == 4 * 256
        assert result["z"][0].untyped_storage().nbytes() == 4 * 4
        assert len(pickle.dumps(result)) < 2 * 4 * 256


def test_without_copy_a_row_is_a_view_and_pickles_the_batch():
    results = [future.result(0) for future in answers(lambda x: x * 2, ROWS, copy=False)]
    assert len({result.untyped_storage().data_ptr() for result in results}) == 1
    assert len(pickle.dumps(results[0])) > 32 * 4 * 256


def test_a_request_alone_in_its_batch_gets_what_the_function_returned():
    kept = torch.ones(1, 3)
    (future,) = answers(lambda x: kept, [torch.zeros(1, 3)])
    assert future.result(0) is kept


def test_rows_of_their_own_keep_their_graph():
    weight = torch.full((3,), 2.0, requires_grad=True)
    first, _ = answers(lambda x: x * weight, [torch.ones(1, 3)] * 2)
    first.result(0).sum().backward()
    assert weight.grad.tolist() == [1, 1, 1]


class CodedError(Exception):
    """Makes a message of its arguments."""

    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


class KeyedError(Exception):
    """Cannot be made of its `args`."""

    def __init__(self, *, key):
        super().__init__("no", key)
        self.key = key


class StubbornError(Exception):
    """Cannot be copied at all."""

    def __new__(cls, secret):
        return super().__new__(cls)

    def __init__(self, secret):
        super().__init__()


def raising(error):
    def fn(batch):
        try:
            raise KeyError("inner")
        except KeyError as cause:
            raise error from cause

    return fn


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", 1),
        CodedError(5),
        KeyedError(key="k"),
        OSError(2, "gone", "file"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "reason"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_caller_of_a_failed_batch_has_an_error_of_its_own(error):
    futures = answers(raising(error), [torch.ones(1)] * 3, retry_halves=False)
    errors = [future.exception(0) for future in futures]
    assert len(set(map(id, errors))) == 3
    for own in errors:
        assert (type(own), str(own), own.args, vars(own)) == (
            type(error),
            str(error),
            error.args,
            vars(error),
        )
        assert isinstance(own.__cause__, KeyError)
    depths = []
    for _ in range(3):
        for future in futures[:2]:
            with pytest.raises(type(error)) as caught:
                future.result(0)
            depths.append(len(caught.traceback))
    assert depths == sorted(depths)
    assert depths[0] == depths[1]  # the first caller's raise did not lengthen the second's
    assert any(entry.name == "fn" for entry in caught.traceback)  # and where it came from is there


def test_an_error_that_cannot_be_copied_reaches_every_caller():
    error = StubbornError("x")
    futures = answers(raising(error), [torch.ones(1)] * 3, retry_halves=False)
    assert [future.exception(0) for future in futures] == [error] * 3


def test_tasks_and_dropped_requests_have_errors_of_their_own_too():
    async def main():
        async with torchgil.Batcher(
            lambda x: 1 / 0, max_batch_size=2, max_delay=60, retry_halves=False
        ) as batcher:
            return await asyncio.gather(*[batcher(torch.ones(1)) for _ in range(2)], return_exceptions=True)

    first, second = asyncio.run(main())
    assert first is not second
    assert type(first) is type(second) is ZeroDivisionError

    batcher = torchgil.Batcher(lambda x: x, max_delay=3600)
    futures = [batcher.submit(torch.ones(1)) for _ in range(2)]
    batcher.shutdown(drain=False)
    assert len({id(future.exception(0)) for future in futures}) == 2


def test_a_batcher_has_no_thread_but_its_workers():
    gate = threading.Event()
    before = set(threading.enumerate())
    seen = []

    async def main():
        batcher = torchgil.Batcher(lambda x: (gate.wait(60), x)[1], max_delay=0, max_queue=2, timeout=3600)
        futures = [batcher.submit(torch.ones(1), timeout=60)]
        wait_until(lambda: batcher.stats().running)
        tasks = [asyncio.create_task(batcher(torch.ones(1))) for _ in range(4)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.aclose())
        await asyncio.sleep(0.01)
        seen.extend(set(threading.enumerate()) - before)
        gate.set()
        await closing
        futures[0].result(60)
        return await asyncio.gather(*tasks, return_exceptions=True)

    answered = asyncio.run(main())
    assert [thread.name for thread in seen] == ["torchgil-batcher_0"]
    assert sum(isinstance(answer, torchgil.BatcherClosed) for answer in answered) == 2  # waited for room


def test_thousands_of_tasks_at_once_pass_through_a_small_queue():
    async def main():
        async with torchgil.Batcher(lambda x: x + 1, max_queue=16) as batcher:
            rows = torch.arange(4000.0).unsqueeze(1).split(1)
            return await asyncio.gather(*[batcher(row) for row in rows]), batcher.stats()

    answered, stats = asyncio.run(main())
    assert torch.equal(torch.cat(answered), torch.arange(1.0, 4001).unsqueeze(1))
    assert (stats.done, stats.blocked) == (4000, 0)
