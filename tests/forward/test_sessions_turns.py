"""A session takes one call at a time: a second one, from another thread or from within, is an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import torchgil
from tests.conftest import in_threads
from tests.forward.stateful import USES, counter, holding

X = torch.tensor([1.0, 2.0, 3.0])
ENTERED, LEAVE = threading.Event(), threading.Event()
WITHIN: list[Callable[[], Any]] = []


@torch.library.custom_op("torchgil_test::pause", mutates_args=())
def pause(x: Tensor) -> Tensor:
    """In the middle of a call: runs what stands in WITHIN, or waits until LEAVE is set."""
    if WITHIN:
        WITHIN.pop()()
    else:
        ENTERED.set()
        assert LEAVE.wait(60)
    return x.clone()


pause.register_fake(torch.empty_like)


@pytest.fixture(scope="module")
def fast() -> Any:
    return torchgil.nogil(counter(), (X,))


@pytest.fixture(scope="module")
def pausing() -> Any:
    """A forward that adds 1 to its state before it pauses, and 10 after it."""
    with pytest.warns(UserWarning, match="takes the GIL back"):
        return torchgil.nogil(
            holding(lambda m, x: (m.a.add_(1), m.a.add_(pause(x))), a=torch.zeros(1)),
            (torch.full((1,), 10.0),),
        )


@pytest.fixture
def in_a_call(pausing: Any) -> Iterator[Any]:
    """A session that the thread "holder" is in a call of."""
    ENTERED.clear()
    LEAVE.clear()
    session = pausing.session()
    thread = threading.Thread(target=session, args=(torch.full((1,), 10.0),), name="holder")
    thread.start()
    try:
        assert ENTERED.wait(60)
        yield session
    finally:
        LEAVE.set()
        thread.join()
    assert session.state["a"].item() == 11


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_second_use_at_once_is_an_error_that_names_both_threads(
    in_a_call: Any, use: Callable[[Any], Any]
) -> None:
    with pytest.raises(
        RuntimeError, match="thread 'MainThread' uses a session while thread 'holder' is in a call"
    ):
        use(in_a_call)


def test_the_error_names_a_thread_whose_name_is_no_utf_8(in_a_call: Any) -> None:
    def use() -> None:
        with pytest.raises(RuntimeError, match=r"thread '\\udc80' uses a session while thread .holder."):
            in_a_call.reset()
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=use, name="\udc80")
    thread.start()
    thread.join()
    assert done


def test_what_was_had_of_the_state_before_is_not_set_during_a_call(pausing: Any) -> None:
    session, x = pausing.session(), torch.full((1,), 10.0)
    state = session.state

    def within() -> None:
        with pytest.raises(RuntimeError, match="within its own call"):
            state["a"] = x

    WITHIN.append(within)
    session(x)
    assert session.state["a"].item() == 11


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_use_within_a_call_is_an_error_and_the_call_goes_on(
    pausing: Any, use: Callable[[Any], Any]
) -> None:
    session = pausing.session()
    errors: list[str] = []

    def within() -> None:
        try:
            use(session)
        except RuntimeError as error:
            errors.append(str(error))

    WITHIN.append(within)
    session(torch.full((1,), 10.0))
    assert len(errors) == 1
    assert "thread 'MainThread' uses a session within its own call of it" in errors[0]
    assert session.state["a"].item() == 11


def test_other_sessions_run_meanwhile(in_a_call: Any, pausing: Any) -> None:
    WITHIN.append(lambda: None)
    other = pausing.session()
    other(torch.full((1,), 10.0))
    assert other.state["a"].item() == 11


def test_threads_that_fight_for_a_session_get_whole_calls_or_errors(fast: Any) -> None:
    session, errors = fast.session(), []

    def work(_: int) -> int:
        done = 0
        for _ in range(300):
            try:
                session(X)
                done += 1
            except RuntimeError as error:
                errors.append(str(error))
        return done

    done = sum(in_threads(work, 4))
    assert all("one call at a time" in error for error in errors)
    assert session.state["total"].tolist() == (X * done).tolist()
