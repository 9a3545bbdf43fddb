"""What is kept for later is checked when it is given, and the message says whose argument it is."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

import torchgil

NAN, INF = math.nan, math.inf
NO_NUMBER = ["a", "1", None, True, 1j, [1], Decimal(1), torch.ones(1), numpy.ones(2), object()]
NO_COUNT = [*NO_NUMBER, 1.0, 0, -1, NAN, INF]
NO_LIMIT = ["a", True, 1j, [1], Decimal(1), -1, -1e-9, NAN, -INF, -(10**400)]
NO_FLAG = ["no", None, 2, -1, 1.0, [], torch.tensor(True)]
NO_FUNCTION = [3, "f", object(), torch.ones(1)]


async def coroutine_function(x):
    return x


async def async_generator(x):
    yield x


class AsyncCallable:
    async def __call__(self, x):
        return x


def batcher(**options):
    torchgil.Batcher(options.pop("fn", lambda x: x), **options).shutdown()


def pool(workers=1, **options):
    torchgil.ThreadPool(workers, **options).shutdown()


def shown(value):
    """Short, and the same in each process: no address."""
    return repr(value).partition(" at 0x")[0][:30]


def made(make):
    """Calls a method of a batcher or a pool that there is."""

    def call(**options):
        with (
            torchgil.ThreadPool(1) as pool,
            torchgil.Batcher(lambda x: x, executor=pool, max_delay=0) as batcher,
        ):
            make({"pool": pool, "batcher": batcher}, options)

    return call


def awaited(objects, options):
    asyncio.run(objects["batcher"](torch.ones(1), **options))


CASES = [
    (batcher, "Batcher: fn", [None, *NO_FUNCTION, coroutine_function, async_generator, AsyncCallable()]),
    (batcher, "Batcher: collate", [*NO_FUNCTION, coroutine_function]),
    (batcher, "Batcher: split", [*NO_FUNCTION, coroutine_function]),
    (batcher, "Batcher: rows", [*NO_FUNCTION, coroutine_function]),
    (batcher, "Batcher: max_batch_size", NO_COUNT),
    (batcher, "Batcher: max_queue", NO_COUNT),
    (batcher, "Batcher: concurrency", NO_COUNT),
    (batcher, "Batcher: max_delay", [*NO_NUMBER, *NO_LIMIT, INF, 10**400]),
    (batcher, "Batcher: timeout", NO_LIMIT),
    (batcher, "Batcher: block_timeout", NO_LIMIT),
    (batcher, "Batcher: on_full", ["drop", None, 1, ["block"], numpy.array(["block", "raise"])]),
    (batcher, "Batcher: retry_halves", NO_FLAG),
    (batcher, "Batcher: copy", NO_FLAG),
    (batcher, "Batcher: executor", [3, "threads", ThreadPoolExecutor, torchgil.ThreadPool]),
    (pool, "ThreadPool: workers", [x for x in [*NO_COUNT, 4097] if x is not None]),
    (pool, "ThreadPool: intra_op_threads", [x for x in [*NO_COUNT, 4097] if x is not None]),
    (pool, "ThreadPool: inference_mode", NO_FLAG),
    (pool, "ThreadPool: pin", NO_FLAG),
    (pool, "ThreadPool: gil_priority", NO_FLAG),
    (pool, "ThreadPool: initializer", [*NO_FUNCTION, coroutine_function]),
    (pool, "ThreadPool: initargs", [None, 3, "x", object()]),
    (pool, "ThreadPool: thread_name_prefix", [None, 3, b"x", "\udc80"]),
    (
        made(lambda objects, options: objects["pool"].stats(gil=True, **options)),
        "ThreadPool.stats: window",
        [*NO_NUMBER, -1, NAN, INF, 1e9],
    ),
    (
        made(lambda objects, options: objects["batcher"].submit(torch.ones(1), **options)),
        "Batcher: timeout",
        NO_LIMIT,
    ),
    (made(awaited), "Batcher: timeout", NO_LIMIT),
    (
        made(lambda objects, options: objects["batcher"].map([torch.ones(1)], **options)),
        "Batcher: timeout",
        NO_LIMIT,
    ),
    (made(lambda objects, options: objects["batcher"].shutdown(**options)), "Batcher: timeout", NO_LIMIT),
    (
        made(lambda objects, options: asyncio.run(objects["batcher"].aclose(**options))),
        "Batcher: timeout",
        NO_LIMIT,
    ),
    (torchgil.intra_op_threads, "intra_op_threads: n", [*NO_COUNT, 4097]),
    (torchgil.switch_interval, "switch_interval: seconds", [*NO_NUMBER, 0, -1, NAN, INF, 1e-9, 1e9, 10**400]),
    (
        torchgil.set_adaptive_threshold,
        "set_adaptive_threshold: seconds",
        [*NO_NUMBER, -1, NAN, -INF, 10**400],
    ),
]


@pytest.mark.parametrize(
    ("call", "argument", "wrong"),
    [(call, argument, wrong) for call, argument, several in CASES for wrong in several],
    ids=[f"{argument}={shown(wrong)}" for _, argument, several in CASES for wrong in several],
)
def test_a_wrong_argument_is_refused_by_name_when_it_is_given(call, argument, wrong):
    name = argument.split(": ")[1]
    with pytest.raises((TypeError, ValueError), match=f"^{argument} must"):
        call(**{name: wrong})


@pytest.mark.parametrize(
    "call", [torchgil.set_adaptive_threshold, torchgil.GilMonitor, torchgil.intra_op_threads]
)
def test_a_number_that_python_does_not_write_is_refused_all_the_same(call):
    with pytest.raises(ValueError, match=r"must be .*, got something of type int$"):
        call(10**5000)


def test_an_executor_of_processes_is_refused():
    with ProcessPoolExecutor(1) as processes, pytest.raises(TypeError, match="threads of this process"):
        torchgil.Batcher(lambda x: x, executor=processes)


@pytest.mark.parametrize("one", [1, 1.0, numpy.float32(1), numpy.float64(1), numpy.int64(1), Fraction(1)])
def test_every_real_number_is_a_number_of_seconds(one):
    with torchgil.Batcher(lambda x: x, max_delay=one - one, timeout=one, block_timeout=one) as batcher:
        assert batcher.submit(torch.ones(1), timeout=one).result(60) == 1
        assert asyncio.run(batcher(torch.ones(1), timeout=one)) == 1
    with torchgil.switch_interval(one / 100):
        pass


@pytest.mark.parametrize("limit", [INF, 1e300, 10**30])
def test_a_limit_that_never_comes_is_none(limit):
    with torchgil.Batcher(lambda x: x, max_delay=0, timeout=limit, block_timeout=limit) as batcher:
        assert batcher.submit(torch.ones(1)).result(60) == 1
        assert asyncio.run(batcher(torch.ones(1))) == 1
        batcher.shutdown(timeout=limit)


@pytest.mark.parametrize("one", [1, numpy.int64(1), numpy.uint8(1), torch.tensor(1)])
def test_every_integer_is_a_count(one):
    with torchgil.Batcher(lambda x: x, max_batch_size=one, max_queue=one, concurrency=one) as batcher:
        assert batcher.submit(torch.ones(1)).result(60) == 1
    with torchgil.ThreadPool(one, intra_op_threads=one) as pool:
        assert pool.submit(torch.get_num_threads).result(60) == 1
    with torchgil.intra_op_threads(one):
        assert torch.get_num_threads() == 1
