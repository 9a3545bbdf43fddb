"""A model that writes to its buffers runs in sessions: own copies of what is written, the rest shared."""

# ruff: noqa: E501  # one case a row: a table reads better than its rows broken up
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.forward.cases import Of
from tests.forward.comparing import assert_same
from tests.forward.stateful import (
    DECODER_SIZES,
    NoFunctionalGraphError,
    counter,
    decoder,
    exported,
    holding,
    prompt,
)
from torchgil._torch_half import C

FORMS = pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
X = torch.tensor([1.0, 2.0, 3.0])


def writes(function: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """A forward that writes as the function does and returns what follows from all the buffers."""

    def forward(m: Any, x: Tensor) -> Any:
        function(m, x)
        return {name: buffer * m.weight.sum() for name, buffer in m.named_buffers()}

    return forward


def assign(m: Any, x: Tensor) -> None:
    m.a = m.a + x


def swap(m: Any, x: Tensor) -> None:
    a = m.a.clone()
    m.a.copy_(m.b)
    m.b.copy_(a)


A = torch.tensor([4.0, 5.0, 6.0])
SQUARE = torch.arange(9.0).view(3, 3)
WAYS: dict[str, Callable[[], nn.Module]] = {
    "in place": lambda: holding(writes(lambda m, x: m.a.add_(x)), a=A.clone()),
    "a view": lambda: holding(writes(lambda m, x: m.a[1:].mul_(2)), a=A.clone()),
    "a view of a view": lambda: holding(writes(lambda m, x: m.a.view(3, 1).mT[0, :2].sub_(x[:2])), a=A.clone()),
    "one of a list of views": lambda: holding(writes(lambda m, x: m.a.split(2)[0].neg_()), a=A.clone()),
    "an item": lambda: holding(writes(lambda m, x: m.a.__setitem__(0, x.sum())), a=A.clone()),
    "out=": lambda: holding(writes(lambda m, x: torch.add(m.b, x, out=m.a)), a=A.clone(), b=A.clone()),
    "at an index": lambda: holding(
        writes(lambda m, x: (m.a.index_copy_(0, m.n % 3, x[:1]), m.n.add_(1))), a=A.clone(), n=torch.zeros(1).long()
    ),
    "an assignment": lambda: holding(writes(assign), a=A.clone()),
    "written and never read": lambda: holding(lambda m, x: (m.a.copy_(x), x * 2)[1], a=A.clone()),
    "two that are swapped": lambda: holding(writes(swap), a=A.clone(), b=-A),
    "one from the other": lambda: holding(writes(lambda m, x: m.a.copy_(m.b.add_(x))), a=A.clone(), b=-A),
    "two that are one": lambda: holding(writes(lambda m, x: (m.a.add_(x), m.b.mul_(2))), **dict.fromkeys("ab", A.clone())),
    "a transposed buffer": lambda: holding(writes(lambda m, x: m.a.add_(x)), a=SQUARE.clone().mT),
    "integers and flags": lambda: holding(
        writes(lambda m, x: (m.n.add_(1), m.f.logical_not_())), n=torch.zeros(2, dtype=torch.int8), f=torch.ones(2).bool()
    ),
    "no element": lambda: holding(writes(lambda m, x: (m.a.add_(1), m.b.add_(x))), a=torch.zeros(0), b=A.clone()),
}  # fmt: skip


@FORMS
@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_a_session_does_what_a_copy_of_the_module_does_alone(
    make: Callable[[], nn.Module], functional: bool
) -> None:
    try:
        program = exported(make(), X, functional=functional)
    except NoFunctionalGraphError:
        pytest.skip("torch makes no functional graph of it")
    fast = torchgil.nogil(program)
    sessions, models = [fast.session() for _ in range(2)], [make() for _ in range(2)]
    for i in (0, 1, 0, 0, 1):
        assert_same(sessions[i](X + i), models[i](X + i))
        for name, tensor in sessions[i].state.items():
            assert_same(tensor, dict(models[i].named_buffers(remove_duplicate=False))[name].detach())
    assert set(fast.state_names) <= {name for name, _ in make().named_buffers(remove_duplicate=False)}


def test_tensors_that_share_memory_in_the_model_share_it_in_a_session() -> None:
    base = torch.arange(8.0)
    model = holding(writes(lambda m, x: m.whole.add_(1)), whole=base, middle=base[2:5], other=torch.ones(1))
    alone = copy.deepcopy(model)
    session = torchgil.nogil(model, (X,)).session()
    assert_same(session(X), alone(X))
    assert list(session.state) == ["whole", "middle"]  # the other one is written nowhere
    session.state["middle"].zero_()
    assert session.state["whole"].tolist() == [1, 2, 0, 0, 0, 6, 7, 8]
    assert base.tolist() == list(range(8))
    copied = session.copy()
    copied.state["whole"].fill_(7)
    assert copied.state["middle"].tolist() == [7, 7, 7]
    assert session.state["middle"].tolist() == [0, 0, 0]


def test_a_constant_that_export_lifted_is_state_as_well() -> None:
    model = Of(lambda m, x: m.count.add_(x) * 1)
    model.count = torch.zeros(3)  # no buffer
    fast = torchgil.nogil(model, (X,))
    assert len(fast.state_names) == 1
    a, b = fast.session(), fast.session()
    assert [a(X).tolist(), a(X).tolist(), b(X).tolist()] == [[1, 2, 3], [2, 4, 6], [1, 2, 3]]
    assert model.count.tolist() == [0, 0, 0]


@FORMS
def test_a_call_of_the_forward_itself_is_refused_with_the_line_to_write(functional: bool) -> None:
    fast = torchgil.nogil(exported(counter(), X, functional=functional))
    with pytest.raises(RuntimeError, match=r"it writes to 'total',(.|\n)*session = fast\.session\(\)"):
        fast(X)
    assert repr(fast).endswith("state=('total',))")
    many = holding(writes(lambda m, x: [b.add_(1) for b in m.buffers()]), **{n: A.clone() for n in "abcde"})
    with pytest.raises(RuntimeError, match="it writes to 'a', 'b', 'c' and 2 others"):
        torchgil.nogil(many, (X,))(X)


def test_a_call_releases_the_gil_exactly_once() -> None:
    session = torchgil.nogil(counter(), (X,)).session()
    before = C.forward_releases()
    results = [session(X) for _ in range(10)]  # kept: freeing a tensor releases the GIL once more
    assert C.forward_releases() - before == 10
    with torchgil.trace() as traced:
        results.extend(session(X) for _ in range(10))
    (mine,) = [t for t in traced.report().threads if t.name == "MainThread"]
    assert mine.releases == 10


def test_threads_with_a_session_each_get_what_one_thread_gets() -> None:
    fast = torchgil.nogil(decoder(), prompt(4), dynamic_shapes=DECODER_SIZES)
    alone = decoder()

    def generate(step: Any, seed: int) -> list[Tensor]:
        tokens, places = prompt(1 + seed % 5, seed)
        results = [step(tokens, places)]
        for i in range(len(places), 16):
            results.append(step(results[-1][-1:].argmax(-1), torch.tensor([i])))
        return results

    with torch.inference_mode():
        want = [generate(copy.deepcopy(alone), seed) for seed in range(8)]
    for _ in range(3):
        assert_same(in_threads(lambda seed: generate(fast.session(), seed), 8), want)


def test_a_session_goes_from_thread_to_thread() -> None:
    session, alone = torchgil.nogil(counter(), (X,)).session(), counter()
    for i in range(20):
        (result,) = in_threads(lambda _, i=i: session(X + i), 1)
        assert_same(result, alone(X + i).detach())


def test_sizes_may_change_from_call_to_call_and_are_checked() -> None:
    session, alone = torchgil.nogil(decoder(), prompt(4), dynamic_shapes=DECODER_SIZES).session(), decoder()
    start = 0
    with torch.inference_mode():
        for length in (5, 1, 1, 3, 2):
            assert_same(session(*prompt(length, start, start)), alone(*prompt(length, start, start)))
            start += length
    assert session.state["seen"] == start
    with pytest.raises(ValueError, match="length must be at least 1 and at most 16"):
        session(*prompt(17))
    with pytest.raises(ValueError, match="its dtype differs"):
        session(prompt(2)[0].int(), prompt(2)[1])
    assert session.state["seen"] == start


def test_weights_are_shared_and_changes_in_place_are_seen() -> None:
    model = counter()
    fast = torchgil.nogil(model, (X,))
    sessions = [fast.session(), fast.session()]
    with torch.no_grad():
        model.weight.mul_(2)
    assert [session(X).tolist() for session in sessions] == [[1, -4, 12]] * 2
    model.weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="'weight' of the model was replaced"):
        sessions[0](X)


def test_a_session_begins_with_the_values_at_the_time_the_forward_was_built() -> None:
    model = counter()
    model.total.fill_(1)
    fast = torchgil.nogil(model, (X,))
    model(X)  # the model's own state goes its own way, even where a buffer is replaced
    model.total = torch.full((3,), 9.0)
    session = fast.session()
    assert session.state["total"].tolist() == [1, 1, 1]
    session(X)
    assert model.total.tolist() == [9, 9, 9]
    session.reset()
    assert session.state["total"].tolist() == [1, 1, 1]


def test_a_session_takes_the_memory_of_what_is_written_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(64, 64), counter())
    model.register_buffer("unwritten", torch.zeros(1000))
    model[1].register_buffer("big", torch.zeros(100, 3))
    model[1].function = lambda m, x: (m.big[:1].add_(x[:1, :3]), m.total.add_(1), x * 1)[2]
    session = torchgil.nogil(model.eval(), (torch.ones(2, 64),)).session()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in session.state.values()}
    assert sorted(session.state) == ["1.big", "1.total"]
    assert sorted(storages.values()) == [3 * 4, 300 * 4]


def test_many_sessions_take_their_caches_and_give_them_back() -> None:
    code = """
        import ctypes, gc, os, torch, torchgil
        torch.set_num_threads(1)
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(2048, 2048)  # 16 MiB
                self.register_buffer("cache", torch.zeros(512, 2048))  # 4 MiB
            def forward(self, x):
                self.cache[:1].copy_(self.linear(x))
                return self.cache.sum()
        def resident():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
            with open("/proc/self/statm") as f:
                return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        x = torch.ones(1, 2048)
        fast = torchgil.nogil(Model(), (x,))
        with fast.session() as first:
            first(x)
        before = resident()
        sessions = [fast.session() for _ in range(32)]
        for session in sessions:
            session(x)
        grown = resident() - before
        assert 32 * 4 <= grown < 32 * 4 + 12, f"{grown} MiB for 32 caches of 4"
        for session in sessions[:16]:
            session.close()
        halved = resident() - before
        assert halved < 16 * 4 + 12, f"{halved} MiB for 16"
        del session, sessions
        left = resident() - before
        assert left < 12, f"{left} MiB for none"
    """
    run_in_child(code)


@pytest.mark.parametrize(
    ("what", "make", "match"),
    [
        ("an input", lambda: holding(lambda m, x: (m.a.add_(1), x.add_(1)), a=A.clone()), "writes to the input 'args_0', a data race"),
        ("a parameter", lambda: holding(lambda m, x: (m.a.add_(1), m.weight.clamp_(0, 1)), a=A.clone()), "writes to the parameter 'weight', a data race"),
        ("the shape", lambda: holding(lambda m, x: m.a.unsqueeze_(0) + x, a=A.clone()), "changes the shape or the memory of the buffer 'a'"),
        ("the memory", lambda: holding(lambda m, x: m.a.set_(x) + x, a=A.clone()), "changes the shape or the memory of the buffer 'a'"),
    ],
)  # fmt: skip
def test_writes_that_no_session_makes_safe_are_refused(
    what: str, make: Callable[[], nn.Module], match: str
) -> None:
    model = make()
    with torch.no_grad(), pytest.raises(NotImplementedError, match=match):
        torchgil.nogil(model, (X,))


def test_a_write_to_memory_of_a_parameter_is_refused() -> None:
    model = holding(lambda m, x: m.a.add_(1).sum() * m.weight)
    model.register_buffer("a", model.weight.detach()[:2])
    with pytest.raises(
        NotImplementedError, match="'a', which shares memory with the parameter 'weight'; give it"
    ):
        torchgil.nogil(model, (X,))


def test_state_of_a_kind_that_has_no_plain_memory_is_refused() -> None:
    model = holding(lambda m, x: m.a.mul_(2).to_dense() * x, a=torch.eye(3).to_sparse())
    with pytest.raises(NotImplementedError, match="'a', which is sparse, quantized"):
        torchgil.nogil(exported(model, X))


def test_compiled_packages_have_no_sessions_and_say_so() -> None:
    with pytest.raises(
        NotImplementedError,
        match=r"it writes to 'total', and a compiled package.*use backend='graph', which has sessions",
    ):
        torchgil.nogil(counter(), (X,), backend="inductor")


def test_training_mode_is_refused_as_ever() -> None:
    with pytest.raises(NotImplementedError, match="normalisation in training mode"):
        torchgil.nogil(nn.BatchNorm1d(3).train(), (torch.randn(4, 3),))


def test_a_model_without_state_has_sessions_too() -> None:
    model = nn.Linear(3, 3).eval()
    fast = torchgil.nogil(model, (X,))
    session = fast.session()
    assert fast.state_names == ()
    assert session.state == {}
    session.state = {}
    session.reset()
    assert_same(session.copy()(X), fast(X))
