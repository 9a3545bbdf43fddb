"""The future without a lock behaves as the standard one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

from tests.conftest import in_threads
from torchgil.serving.lean_future import LeanFuture


@pytest.fixture(params=[LeanFuture, concurrent.futures.Future])
def future(request):
    return request.param()


def test_result_exception_and_state(future):
    assert (future.done(), future.running(), future.cancelled()) == (False, False, False)
    with pytest.raises(TimeoutError):
        future.result(0)
    future.set_result(5)
    assert (future.result(), future.exception(), future.done()) == (5, None, True)
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_result(6)
    assert not future.cancel()
    assert "finished" in repr(future)


def test_an_exception_is_raised(future):
    future.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        future.result()
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_result(6)


def test_cancelling(future):
    assert future.cancel()
    assert not future.set_running_or_notify_cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_callbacks_before_and_after(future):
    seen = []
    future.add_done_callback(lambda f: seen.append(("before", f.result())))
    future.set_result(1)
    future.add_done_callback(lambda f: seen.append(("after", f.result())))
    assert seen == [("before", 1), ("after", 1)]


def test_wait_as_completed_and_asyncio_take_it(future):
    other = type(future)()
    other.set_result(2)
    done, pending = concurrent.futures.wait([future, other], timeout=0)
    assert (done, pending) == ({other}, {future})
    threading.Timer(0.01, future.set_result, [1]).start()
    assert {f.result() for f in concurrent.futures.as_completed([future, other], timeout=60)} == {1, 2}

    async def main():
        return await asyncio.wrap_future(future)

    assert asyncio.run(main()) == 1


def test_no_waiter_and_no_callback_is_missed_in_a_race():
    for _ in range(300):
        future = LeanFuture()
        called = []

        def act(i, future=future, called=called):
            if i == 0:
                future.set_result(7)
            elif i == 1:
                future.add_done_callback(lambda f: called.append(f.result()))
            elif i == 2:
                concurrent.futures.wait([future], timeout=60)
            return future.result(60)

        assert in_threads(act, 4) == [7] * 4
        assert called == [7]
