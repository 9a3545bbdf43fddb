"""What is in a batch and what comes out of it: rows, groups, results, errors, counts."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import namedtuple

import pytest
import torch

import torchgil
from tests.serving.conftest import wait_until

Pair = namedtuple("Pair", "a b")


def test_each_caller_gets_its_own_rows(held):
    batcher, fn, first = held
    inputs = [torch.randn(rows, 3) for rows in (1, 2, 0, 3)]
    futures = [batcher.submit(x) for x in inputs]
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    fn.gate.set()
    assert torch.equal(first.result(60), torch.zeros(1, 3))
    for x, future in zip(inputs, futures, strict=True):
        assert torch.equal(future.result(60), x * 2)
    assert fn.shapes == [[1, 3], [6, 3]]


def test_max_batch_size_counts_rows_and_keeps_the_order(held):
    batcher, fn, _ = held
    futures = [batcher.submit(torch.full((rows, 3), float(rows))) for rows in (5, 3, 1, 8)]
    fn.gate.set()
    assert [future.result(60)[0, 0].item() for future in futures] == [10, 6, 2, 16]
    assert fn.shapes == [[1, 3], [8, 3], [1, 3], [8, 3]]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, x + 1),
        lambda x: {"a": x, "b": [x + 1]},
        lambda x: Pair(x, {"deep": (x,)}),
        lambda x: [x, None],
    ],
)
def test_requests_and_results_are_pytrees(make):
    def fn(batch):
        leaves = torch.utils._pytree.tree_map(lambda t: None if t is None else t * 2, batch)
        return {"same": leaves, "none": None}

    with torchgil.Batcher(fn, max_delay=0.05) as batcher:
        inputs = [torch.randn(rows, 2) for rows in (1, 2)]
        for x, future in zip(inputs, [batcher.submit(make(x)) for x in inputs], strict=True):
            result = future.result(60)
            assert result["none"] is None
            got, expected = result["same"], fn(make(x))["same"]
            assert type(got) is type(expected)
            for a, b in zip(*map(torch.utils._pytree.tree_leaves, (got, expected)), strict=True):
                assert (a is b is None) or torch.equal(a, b)


def test_different_dtypes_shapes_and_structures_are_grouped(held):
    batcher, fn, _ = held
    inputs = [torch.ones(1, 3), torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 4), torch.ones(2, 3)]
    futures = [batcher.submit(x) for x in inputs]
    fn.gate.set()
    for x, future in zip(inputs, futures, strict=True):
        assert future.result(60).dtype == x.dtype
        assert torch.equal(future.result(60), x * 2)
    assert fn.shapes == [[1, 3], [3, 3], [1, 3], [1, 4]]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (torch.tensor(1.0), ValueError, "leading row dimension"),
        ("text", TypeError, "found str"),
        ({}, TypeError, "at least one tensor"),
        ((torch.ones(2), torch.ones(3)), ValueError, "same number of rows, got 2 and 3"),
        (torch.ones(33, 1), ValueError, "33 rows is larger than max_batch_size=32"),
    ],
)
def test_a_request_that_cannot_be_batched_fails_alone(request_, error, message):
    with torchgil.Batcher(lambda x: x, max_delay=0.02) as batcher:
        good = batcher.submit(torch.ones(1, 2))
        with pytest.raises(error, match=message):
            batcher.submit(request_).result(60)
        with pytest.raises(error, match=message):
            asyncio.run(batcher(request_))
        assert torch.equal(good.result(60), torch.ones(1, 2))
        assert (batcher.stats().failed, batcher.stats().done) == (2, 1)


def test_collate_split_and_rows_can_be_given():
    def fn(words):
        assert isinstance(words, tuple)
        return "+".join(words)

    seen = []

    def split(result, rows):
        seen.append(rows)
        return result.split("+")

    with torchgil.Batcher(
        fn, max_delay=0.2, max_batch_size=8, collate=tuple, split=split, rows=len
    ) as batcher:
        futures = [batcher.submit(word) for word in ("abc", "de", "fgh", "i")]
        assert [future.result(60) for future in futures] == ["abc", "de", "fgh", "i"]
        with pytest.raises(ValueError, match="9 rows is larger"):
            batcher.submit("123456789").result(60)
    assert seen == [[3, 2, 3], [1]]


def test_collate_can_pad_what_would_not_go_together():
    def pad(xs):
        return torch.nn.utils.rnn.pad_sequence([x[0] for x in xs], batch_first=True)

    with torchgil.Batcher(lambda x: x.sum(1), max_delay=0.2, max_batch_size=2, collate=pad) as batcher:
        futures = [batcher.submit(torch.ones(1, length)) for length in (3, 5)]
        assert [future.result(60).item() for future in futures] == [3, 5]
    assert batcher.stats().batch_rows == {2: 1}


def test_the_function_may_write_to_its_batch():
    with torchgil.Batcher(lambda batch: batch.add_(1), max_delay=0) as batcher:
        x = torch.zeros(1, 2)
        assert torch.equal(batcher.submit(x).result(60), torch.ones(1, 2))
        assert torch.equal(x, torch.zeros(1, 2))


def test_requests_made_under_inference_mode_reach_a_function_that_is_not():
    linear = torch.nn.Linear(2, 2)
    with torch.inference_mode():
        x = torch.ones(1, 2)
    with torchgil.Batcher(linear, max_delay=0) as batcher:
        assert batcher.submit(x).result(60).requires_grad


# One bad item.


def refuse_negative(batch):
    if (batch < 0).any():
        raise ValueError("a negative number")
    return batch * 2


def test_one_bad_item_does_not_fail_its_neighbours_as_it_does_in_litserve_bentoml_ray_serve_and_torchserve(
    held,
):
    batcher, fn, _ = held
    fn.fn = refuse_negative
    values = [1.0, -1.0, 3.0, 4.0]
    futures = [batcher.submit(torch.full((1, 3), value)) for value in values]
    fn.gate.set()
    for value, future in zip(values, futures, strict=True):
        if value < 0:
            with pytest.raises(ValueError, match="a negative number"):
                future.result(60)
        else:
            assert future.result(60)[0, 0] == 2 * value
    assert fn.shapes[1:] == [[4, 3], [2, 3], [1, 3], [1, 3], [2, 3]]
    assert (batcher.stats().failed, batcher.stats().done) == (1, 4)


def test_retrying_by_halves_can_be_turned_off():
    with torchgil.Batcher(refuse_negative, max_delay=0.2, max_batch_size=2, retry_halves=False) as batcher:
        good, bad = batcher.submit(torch.ones(1, 1)), batcher.submit(-torch.ones(1, 1))
        for future in (good, bad):
            with pytest.raises(ValueError, match="negative"):
                future.result(60)


@pytest.mark.parametrize(
    ("options", "fn", "error"),
    [
        ({}, lambda x: x[:-1], "first dimension must be|batch of"),
        ({}, lambda x: x.sum(), "shape \\[\\] for a batch of"),
        ({}, lambda x: [1.0] * len(x), "found float"),
        ({}, lambda x: None, "without any"),
        ({"collate": lambda xs: 1 / 0}, lambda x: x, "division by zero"),
        ({"split": lambda result, rows: 1 / 0}, lambda x: x, "division by zero"),
        ({"split": lambda result, rows: []}, lambda x: x, "split returned 0 results for 1"),
        ({"rows": lambda x: -1}, lambda x: x, "must not be negative"),
    ],
)
def test_collate_function_split_or_rows_failing_fails_every_future_once(options, fn, error):
    with torchgil.Batcher(fn, max_delay=0.05, **options) as batcher:
        futures = [batcher.submit(torch.ones(1, 2)) for _ in range(5)]
        for future in futures:
            with pytest.raises((ValueError, TypeError, ZeroDivisionError), match=error):
                future.result(60)
        stats = batcher.stats()
    assert (stats.failed, stats.submitted) == (5, 5)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
def test_what_no_one_expects_a_function_to_raise_reaches_the_caller(raised):
    def fn(batch):
        raise raised("odd")

    with torchgil.Batcher(fn, max_delay=0) as batcher:
        assert isinstance(batcher.submit(torch.ones(1)).exception(60), raised)
        if raised is StopIteration:
            with pytest.raises(RuntimeError, match="raised StopIteration"):
                asyncio.run(batcher(torch.ones(1)))
        assert batcher.stats().failed == 1 + (raised is StopIteration)


def test_a_done_callback_that_raises_harms_nobody(held, caplog):
    batcher, fn, _ = held
    futures = [batcher.submit(torch.ones(1, 3)) for _ in range(3)]

    def leave(future):
        raise SystemExit("from a callback")

    futures[0].add_done_callback(leave)
    fn.gate.set()
    assert all(torch.equal(future.result(60), 2 * torch.ones(1, 3)) for future in futures)
    wait_until(lambda: "from a callback" in caplog.text)


# The rest.


def test_stats_add_up(held):
    batcher, fn, _ = held
    futures = [batcher.submit(torch.ones(rows, 3)) for rows in (1, 2)]
    stats = batcher.stats()
    assert (stats.queued, stats.queued_rows, stats.running, stats.submitted) == (2, 3, 1, 3)
    fn.gate.set()
    [future.result(60) for future in futures]
    wait_until(lambda: not batcher.stats().running)
    stats = batcher.stats()
    assert (stats.queued, stats.done, stats.submitted, stats.batches) == (0, 3, 3, 2)
    assert stats.batch_rows == {1: 1, 3: 1}
    assert 0 <= stats.wait_p50_s <= stats.wait_p99_s
    assert stats.rows_per_s > 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_queue": 0}, ValueError),
        ({"concurrency": 0}, ValueError),
        ({"max_delay": -1}, ValueError),
        ({"max_delay": float("nan")}, ValueError),
        ({"on_full": "drop"}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        torchgil.Batcher(lambda x: x, **options)
    with pytest.raises(TypeError, match="callable"):
        torchgil.Batcher(None)
    with concurrent.futures.ProcessPoolExecutor(1) as processes, pytest.raises(TypeError, match="threads"):
        torchgil.Batcher(lambda x: x, executor=processes)


def test_more_batches_at_once_than_cores_are_told():
    cores = torchgil.usable_cores()
    with pytest.warns(RuntimeWarning, match=f"concurrency={cores + 1} on {cores} usable cores") as caught:
        torchgil.Batcher(lambda x: x, concurrency=cores + 1).shutdown()
    assert caught[0].filename == __file__
