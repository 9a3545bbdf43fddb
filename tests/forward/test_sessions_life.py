"""A session is copied, set back, set, pickled, forked and closed."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.forward.cases import Of
from tests.forward.comparing import assert_same
from tests.forward.stateful import DECODER_SIZES, USES, counter, decoder, exported, holding, prompt

X = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture(scope="module")
def fast() -> Any:
    return torchgil.nogil(counter(), (X,))


def test_a_call_that_fails_leaves_the_state_as_its_operators_left_it() -> None:
    model = holding(lambda m, x, i: (m.a.add_(1), x[i], m.a.add_(10))[1], a=torch.zeros(3))
    session = torchgil.nogil(model, (X, torch.tensor([0]))).session()
    before = session.copy()
    with pytest.raises(IndexError, match=r"out of bounds(.|\n)*while nogil ran node 'index"):
        session(X, torch.tensor([3]))
    assert session.state["a"].tolist() == [1, 1, 1]
    assert before.state["a"].tolist() == [0, 0, 0]
    session(X, torch.tensor([1]))
    assert session.state["a"].tolist() == [12, 12, 12]
    with pytest.raises(ValueError, match="its dtype differs"):
        session(X.double(), torch.tensor([1]))
    assert session.state["a"].tolist() == [12, 12, 12]
    session.reset()
    assert session.state["a"].tolist() == [0, 0, 0]


def test_a_copy_goes_on_from_the_same_values_on_its_own(fast: Any) -> None:
    first = fast.session()
    first(X)
    branch, other = first.copy(), copy.copy(first)
    first(X)
    branch(3 * X)
    totals = [session.state["total"].tolist() for session in (first, branch, other)]
    assert totals == [(2 * X).tolist(), (4 * X).tolist(), X.tolist()]


def test_branches_of_a_prompt_generate_as_if_each_had_read_it() -> None:
    fast = torchgil.nogil(decoder(), prompt(4), dynamic_shapes=DECODER_SIZES)
    trunk = fast.session()
    trunk(*prompt(6))
    branches = [trunk.copy() for _ in range(4)]
    got = in_threads(lambda i: branches[i](*prompt(2, i, 6)), 4)
    for i in range(4):
        alone = decoder()
        with torch.inference_mode():
            alone(*prompt(6))
            assert_same(got[i], alone(*prompt(2, i, 6)))


def test_state_is_read_and_set_between_calls(fast: Any) -> None:
    session = fast.session()
    assert isinstance(session.state, dict)
    session.state["total"] = torch.tensor([5.0, 5.0, 5.0])
    assert session(X).tolist() == ((X + 5) * torch.tensor([0.5, -1, 2])).tolist()
    saved = {name: tensor.clone() for name, tensor in session.state.items()}
    session(X)
    session.state = saved
    assert session.state["total"].tolist() == (X + 5).tolist()
    session.state["total"].zero_()  # its own tensor, not a copy
    session(X)
    assert session.state["total"].tolist() == X.tolist()
    state = session.state
    state |= {"total": X * 3}
    state.update(total=state["total"] + 1)
    assert session.state["total"].tolist() == (X * 3 + 1).tolist()
    assert type(pickle.loads(pickle.dumps(session.state))) is dict


def test_state_of_another_shape_dtype_or_name_is_refused_and_nothing_written() -> None:
    model = holding(lambda m, x: (m.a.add_(1), m.b.add_(1))[0] * 1, a=torch.zeros(3), b=torch.zeros(2).long())
    session = torchgil.nogil(model, (X,)).session()
    for values, kind, match in [
        ({"a": torch.ones(4)}, ValueError, r"'a' is float32\[3\], and what was assigned is float32\[4\]"),
        (
            {"a": torch.ones(3).double()},
            ValueError,
            r"'a' is float32\[3\], and what was assigned is float64\[3\]",
        ),
        ({"a": torch.ones(3), "b": torch.ones(2)}, ValueError, "'b' is int64"),
        ({"a": [1.0, 1.0, 1.0]}, TypeError, "'a' must be a tensor, got"),
        ({"c": torch.ones(3)}, KeyError, "no state 'c', only 'a', 'b'"),
    ]:
        with pytest.raises(kind, match=match):
            session.state.update(values)
        with pytest.raises((kind, KeyError)):
            session.state = values
    with pytest.raises(KeyError, match="has 'b' as well, which is missing"):
        session.state = {"a": torch.ones(3)}
    for change in (
        lambda s: s.pop("a"),
        lambda s: s.clear(),
        lambda s: s.__delitem__("a"),
        lambda s: s.popitem(),
    ):
        with pytest.raises(TypeError, match="which tensors a session's state has is the model's"):
            change(session.state)
    assert not any(tensor.any() for tensor in session.state.values())


def test_what_is_done_to_the_shape_of_a_tensor_that_a_session_gave_stays_outside() -> None:
    square = torch.arange(9.0).view(3, 3)
    session = torchgil.nogil(holding(lambda m, x: (m.a.add_(x), m.a, m.a.mT), a=square), (X,)).session()
    alone = copy.deepcopy(square)
    for i in range(1, 4):
        results = session(X)
        for result in results:
            assert_same(
                result.contiguous(),
                (alone + i * X if result.is_contiguous() else (alone + i * X).mT).contiguous(),
            )
            result.transpose_(0, 1)
        session.state["a"].unsqueeze_(0)
    kept = session(X)[0]
    session(X)
    assert_same(kept, alone + 5 * X)  # it is the session's buffer


def test_a_closed_session_can_only_be_closed_again(fast: Any) -> None:
    with fast.session() as session:
        session(X)
        state = session.state
    session.close()
    for use in (lambda s: s(X), *(USES[name] for name in ("copy", "reset", "state", "pickle"))):
        with pytest.raises(RuntimeError, match="this session is closed"):
            use(session)
    with pytest.raises(RuntimeError, match="closed"):
        state["total"] = X
    assert state["total"].tolist() == X.tolist()
    assert "session of torchgil.nogil(" in repr(session)
    assert copy.deepcopy(fast).session()(X).tolist() == fast.session()(X).tolist()


def test_the_last_reference_gives_the_memory_back_and_the_forward_stays_while_there_is_a_session() -> None:
    model = counter()
    fast = torchgil.nogil(model, (X,))
    session = fast.session()
    native, weight = weakref.ref(session), weakref.ref(model.weight)
    want = fast.session()(X)
    del model, fast
    gc.collect()
    assert_same(session(X), want)
    assert weight() is not None
    del session
    gc.collect()
    assert native() is None
    assert weight() is None


@pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"]
)
def test_sessions_and_forwards_are_copied_with_their_state(
    how: Callable[[Any], Any], functional: bool
) -> None:
    a = torch.arange(4.0)
    b = a[1:3] if not functional else torch.ones(2)  # torch makes no functional graph of the first
    model = holding(lambda m, x: (m.a.add_(x[0]), m.b.mul_(m.weight.sum()))[0] * 1, a=a, b=b)
    fast = torchgil.nogil(exported(model, X, functional=functional))
    session = fast.session()
    session(X)
    first, second, forward = how([session, session.copy(), fast])
    assert first._forward is forward
    assert second._forward is forward
    for _ in range(2):  # what shared memory still does
        want = session(X)
        assert_same(first(X), want)
        assert_same(second(X), want)
    first.reset()
    for other in (first, forward.session()):
        assert_same(other(X), fast.session()(X))
    with pytest.raises(RuntimeError, match=r"session = fast\.session\(\)"):
        forward(X)


def test_a_copy_of_a_forward_starts_where_the_forward_does_whatever_became_of_its_program() -> None:
    program = exported(counter(), X)
    fast = torchgil.nogil(program)
    program.module()(X)  # writes to the program's own buffer
    assert (
        copy.deepcopy(fast).session()(X).tolist()
        == fast.session()(X).tolist()
        == (X * counter().weight).tolist()
    )


def test_a_saved_forward_whose_state_was_taken_out_is_refused() -> None:
    load, arguments = torchgil.nogil(counter(), (X,)).__reduce__()
    with pytest.raises(ValueError, match="writes to total, not only to its state"):
        load(*arguments[:4], type(arguments[4])())
    layout = arguments[4]
    (block,), (member,) = layout.blocks, layout.members
    for change in (
        {"blocks": (block[:8].clone(),)},
        {"blocks": (block.float(),)},
        {"members": (member._replace(strides=[2**62]),)},
        {"members": (member._replace(strides=[-1]),)},
        {"members": (member._replace(sizes=[4]),)},
        {"members": (member._replace(offset=4),)},
        {"members": (member._replace(offset=-4),)},
        {"members": (member._replace(block=1),)},
    ):
        with pytest.raises((ValueError, TypeError)):
            load(*arguments[:4], dataclasses.replace(layout, **change))


def test_inference_mode_and_grad_mode_around_a_call_make_no_difference() -> None:
    fast = torchgil.nogil(counter(), (X,))
    with torch.inference_mode():
        inside = fast.session()
        want = inside(X).clone()
        branch = inside.copy()
        inside.reset()
    for session in (inside, fast.session()):
        x = X.clone().requires_grad_()
        result = session(x)
        assert_same(result, want)
        assert not result.requires_grad
        assert not session.state["total"].is_inference()
        session.state["total"].add_(1)
        session.state = {"total": x * 2}
        assert session.state["total"].tolist() == (X * 2).tolist()
        assert not session.state["total"].requires_grad
    assert branch.state["total"].tolist() == X.tolist()


def test_a_buffer_that_requires_grad_is_written_and_takes_the_kernels_that_the_models_takes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            m.a.mul_(0.5)
        return torch.nn.functional.linear(x.expand(2, 5, 3), m.a)

    torch.manual_seed(0)
    model = Of(forward)
    model.register_buffer("a", torch.randn(7, 3).requires_grad_())
    program = exported(model, X)
    session, module = torchgil.nogil(program).session(), program.module()
    for _ in range(3):
        got = session(X)
        with torch.inference_mode():
            assert_same(got, module(X))
    session.state["a"].zero_()
    assert not session(X).any()


def test_asyncio_tasks_with_a_session_each_over_one_pool() -> None:
    fast = torchgil.nogil(counter(), (X,))

    async def user(pool: Any, i: int) -> list[float]:
        session = fast.session()
        for _ in range(10):
            await pool.run(session, X * i)
        return session.state["total"].tolist()

    async def all_users() -> list[list[float]]:
        with torchgil.ThreadPool(2) as pool:
            return await asyncio.gather(*(user(pool, i) for i in range(6)))

    assert asyncio.run(all_users()) == [(X * i * 10).tolist() for i in range(6)]


def test_the_child_of_a_fork_goes_on_and_is_told_of_a_call_that_was_cut_off() -> None:
    code = """
        import os, threading, torch, torchgil
        from tests.forward.stateful import counter, holding
        torch.set_num_threads(1)
        x = torch.ones(1)
        entered, leave = threading.Event(), threading.Event()
        @torch.library.custom_op("torchgil_test::pause_here", mutates_args=())
        def pause(x: torch.Tensor) -> torch.Tensor:
            entered.set()
            assert leave.wait(60)
            return x.clone()
        pause.register_fake(torch.empty_like)
        import warnings
        warnings.simplefilter("ignore")
        fast = torchgil.nogil(holding(lambda m, x: (m.a.add_(1), m.a.add_(pause(x))), a=torch.zeros(1)), (x,))
        plain = torchgil.nogil(counter(), (torch.ones(3),))
        idle, busy = plain.session(), fast.session()
        idle(torch.ones(3))
        thread = threading.Thread(target=busy, args=(x,))
        thread.start()
        assert entered.wait(60)
        if (pid := os.fork()) == 0:
            leave.set()
            assert idle(torch.ones(3)).tolist() == [1.0, -2.0, 4.0]
            for use in (lambda: busy(x), lambda: busy.state, busy.copy):
                try:
                    use()
                except RuntimeError as error:
                    assert "was forked, so here its state is half written" in str(error), error
                else:
                    raise AssertionError("no error")
            busy.reset()
            busy(x)
            assert busy.state["a"].item() == 2
            assert fast.session().state["a"].item() == 0
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        leave.set()
        thread.join()
        assert busy.state["a"].item() == 2
        assert idle.state["total"].tolist() == [1.0, 1.0, 1.0]
    """
    run_in_child(code)


def test_daemon_threads_in_a_call_do_not_disturb_the_end_of_the_process() -> None:
    code = """
        import threading, time, torch, torchgil
        from tests.forward.stateful import holding
        torch.set_num_threads(1)
        x = torch.randn(256, 256)
        model = holding(lambda m, x: [m.a.copy_(m.a @ x) for _ in range(20)][-1] * 1, a=x.clone())
        fast = torchgil.nogil(model, (x,))
        sessions, kept = [fast.session() for _ in range(4)], []
        def work(session):
            while True:
                kept.append(session(x))
        for session in sessions:
            threading.Thread(target=work, args=(session,), daemon=True).start()
        time.sleep(0.3)
    """
    assert run_in_child(code, timeout=120, whole_end=True).stderr == ""


def test_priority_is_the_forwards() -> None:
    for asked in (True, False):
        fast = torchgil.nogil(counter(), (X,), gil_priority=asked)
        assert copy.deepcopy(fast.session())._forward._graph.gil_priority is fast._graph.gil_priority
        assert_same(fast.session()(X), X * counter().weight.detach())


def test_a_module_that_is_served_as_well_does_not_meet_its_sessions() -> None:
    model = counter()
    session = torchgil.nogil(model, (X,)).session()
    in_threads(lambda i: [model(X) if i else session(X) for _ in range(50)], 2)
    assert session.state["total"].tolist() == (X * 50).tolist()
    assert model.total.tolist() == (X * 50).tolist()
