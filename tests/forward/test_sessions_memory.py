"""What a session's memory is shared with: buffers that are replaced, results, values that are assigned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import torchgil
from tests.forward.comparing import assert_same
from tests.forward.stateful import counter, exported, holding

X = torch.tensor([1.0, 2.0, 3.0])
A = torch.tensor([4.0, 5.0, 6.0])
SQUARE = torch.arange(9.0).view(3, 3)


def holding_two(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    return holding(function, a=A.clone(), b=-A, square=SQUARE.clone(), n=torch.zeros((), dtype=torch.long))


def swap(turn: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Any]:
    """A forward that swaps two buffers by way of an operator that may hand its argument back."""

    def forward(m: Any, x: Tensor) -> Any:
        m.a, m.b = turn(m.b, x), turn(m.a, x)
        return m.a * 1, m.b * 2

    return forward


def transpose(m: Any, x: Tensor) -> Tensor:
    m.square = m.square.mT.to(x.dtype)
    return m.square.contiguous() * 1


def old_and_new(m: Any, x: Tensor) -> Any:
    old, view = m.a, m.a[1:]
    m.a = m.a + x
    return old, view, m.a


def in_place_and_assigned(m: Any, x: Tensor) -> Any:
    m.n += 1
    m.a += x
    m.b = m.b * 2 + m.n
    m.square *= 2
    return m.a, m.b, m.n * 1, m.square.sum()


REPLACED: dict[str, Callable[[Any, Tensor], Any]] = {
    "swapped by to": swap(lambda t, x: t.to(x.dtype)),
    "swapped by type_as": swap(lambda t, x: t.type_as(x)),
    "swapped by reshape": swap(lambda t, x: t.reshape(3)),
    "swapped by dropout": swap(lambda t, x: F.dropout(t, 0.5, training=False)),
    "by a view of itself": transpose,
    "and the old one returned": old_and_new,
    "by what was written in place": in_place_and_assigned,
}


@pytest.mark.parametrize("forward", REPLACED.values(), ids=REPLACED)
def test_a_buffer_that_is_replaced_has_the_new_value_and_others_the_old_one(forward: Any) -> None:
    model, alone = holding_two(forward), holding_two(forward)
    session = torchgil.nogil(model, (X,)).session()
    for i in range(3):
        assert_same(session(X + i), alone(X + i))
        for name, tensor in session.state.items():
            assert tensor.tolist() == getattr(alone, name).tolist()


def test_a_functional_graph_writes_back_what_was_swapped() -> None:
    forward = REPLACED["swapped by type_as"]
    session, alone = (
        torchgil.nogil(exported(holding_two(forward), X, functional=True)).session(),
        holding_two(forward),
    )
    for _ in range(3):
        assert_same(session(X), alone(X))


def assigning(name: str, new: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        setattr(m, name, new(m, x))
        return x * 1

    return forward


@pytest.mark.parametrize(
    ("name", "new", "match"),
    [
        ("a", lambda m, x: m.a.sum(), r"'a' another dtype or shape: float32\[\] for float32\[3\]"),
        ("a", lambda m, x: torch.cat([m.a, x]), r"float32\[6\] for float32\[3\]"),
        ("n", lambda m, x: m.n + 0.5, r"'n' another dtype or shape: float32\[\] for int64\[\]"),
    ],
)
def test_a_new_value_that_would_be_converted_is_refused(name: str, new: Any, match: str) -> None:
    with pytest.raises(NotImplementedError, match=match):
        torchgil.nogil(holding_two(assigning(name, new)), (X,))


def test_a_buffer_that_is_replaced_and_shares_memory_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.a = m.a + x
        return m.part * 1

    base = A.clone()
    with pytest.raises(NotImplementedError, match="it replaces 'a', which shares memory with 'part'"):
        torchgil.nogil(holding(forward, a=base, part=base[1:]), (X,))
    base = A.clone()
    model = holding(lambda m, x: (m.__setattr__("a", m.a.add_(x)), m.part * 1)[1], a=base, part=base[1:])
    alone = copy.deepcopy(model)
    session = torchgil.nogil(model, (X,)).session()  # written in place, it is the same tensor
    for _ in range(2):
        assert_same(session(X), alone(X))


class Inner(nn.Module):
    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("k", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.k = self.step(self, x)
        return self.k * 2


def test_an_inner_modules_buffer_that_is_replaced_is_refused_where_it_is_read() -> None:
    with pytest.raises(
        NotImplementedError, match=r"the buffer '0\.k' of an inner module, which torch.export leaves out"
    ):
        torchgil.nogil(nn.Sequential(Inner(lambda m, x: torch.cat([m.k[1:], x[:1]]))).eval(), (X,))
    written = nn.Sequential(Inner(lambda m, x: m.k.add_(x))).eval()
    session, alone = torchgil.nogil(written, (X,)).session(), copy.deepcopy(written)
    cached = nn.Sequential(Inner(lambda m, x: x + 1)).eval()  # nobody reads what it was
    fast = torchgil.nogil(cached, (X,))
    for i in range(3):
        assert_same(session(X + i), alone(X + i))
        assert_same(fast(X + i), cached(X + i))


@pytest.mark.parametrize(
    "hand_out",
    [
        lambda m, x: m.a.to(x.dtype),
        lambda m, x: F.dropout(m.a, 0.5, training=False),
        lambda m, x: torch.atleast_1d(m.a),
    ],
    ids=["to", "dropout", "atleast_1d"],
)
def test_a_buffer_handed_out_by_an_operator_keeps_its_shape_in_the_session(hand_out: Any) -> None:
    session = torchgil.nogil(holding_two(lambda m, x: (m.a.add_(x), hand_out(m, x))[1]), (X,)).session()
    session(X).unsqueeze_(0)
    assert_same(session(X), A + 2 * X)
    assert session.state["a"].shape == (3,)


@pytest.mark.parametrize(
    "change",
    [lambda t, x: t.unsqueeze_(0), lambda t, x: t.resize_(9), lambda t, x: t.set_(x)],
    ids=["unsqueeze_", "resize_", "set_"],
)
def test_a_change_of_shape_that_no_schema_tells_of_is_refused_when_it_runs(change: Any) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.a.add_(x)
        return change(F.dropout(m.a, 0.5, training=False), x) * 1

    session = torchgil.nogil(holding_two(forward), (X,)).session()
    with pytest.raises(NotImplementedError, match="the shape or the memory of a buffer, not its values"):
        session(X)
    assert_same(session.state["a"], A + X)


class Subclass(Tensor):
    pass


def sparse(values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor([[0, 1, 2]], values, (3,), is_coalesced=True, check_invariants=True)


COMPLEX = torch.tensor([1 + 2j, 3 - 1j, 2j])
OF_ONE_MEMORY: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "conjugated": lambda: (lambda a: (a, a.conj()))(COMPLEX.clone()),
    "negated": lambda: (lambda a: (a, a.conj().imag))(COMPLEX.clone()),
    "sparse": lambda: (lambda a: (a, sparse(a)))(A.clone()),
    "subclass": lambda: (lambda a: (a, a.as_subclass(Subclass)))(A.clone()),
}  # fmt: skip


@pytest.mark.parametrize("make", OF_ONE_MEMORY.values(), ids=OF_ONE_MEMORY)
def test_memory_that_a_tensor_of_another_kind_has_as_well_is_refused(make: Any) -> None:
    a, b = make()
    model = holding(lambda m, x: (m.a.add_(x), m.b.to_dense() if m.b.is_sparse else m.b * 1)[1], a=a, b=b)
    with pytest.raises(NotImplementedError, match="'a', which shares memory with 'b', and that is sparse"):
        torchgil.nogil(model, (X,))


def test_a_model_without_memory_is_refused_for_that() -> None:
    model = holding(lambda m, x: m.a.add_(x) * m.weight, a=A.clone()).to("meta")
    with pytest.raises(NotImplementedError, match=r"'a', which is .*on meta"):
        torchgil.nogil(model, (X.to("meta"),))


def test_values_that_are_the_sessions_own_are_read_before_any_is_written() -> None:
    whole = torch.arange(8.0)
    model = holding(
        lambda m, x: (m.a.add_(1), m.b.add_(1), m.whole.add_(1), m.first * m.middle)[3],
        a=A.clone(),
        b=-A,
        whole=whole,
        middle=whole[2:5],
        last=whole[3:6],
        first=whole[:1].expand(3),
    )
    session = torchgil.nogil(model, (X,)).session()
    state = session.state
    session.state.update(a=state["b"], b=state["a"])
    assert_same(session.state["a"], -A)
    assert_same(session.state["b"], A)
    session.state["middle"] = session.state["whole"][3:6]
    assert session.state["whole"].tolist() == [0, 1, 3, 4, 5, 5, 6, 7]
    saved = {name: tensor.clone() for name, tensor in session.state.items()}
    session(X)
    session.state = saved  # into the expanded one, too
    for name, tensor in session.state.items():
        assert tensor.tolist() == saved[name].tolist()
    session.state = session.state


def without_memory() -> Tensor:
    tensor = X.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    "value",
    [
        lambda: X.to_sparse(),
        lambda: torch.ones(3, device="meta"),
        lambda: FakeTensorMode().from_tensor(X),
        lambda: torch._to_functional_tensor(X),  # type: ignore[attr-defined]
        without_memory,
    ],
    ids=["sparse", "meta", "fake", "functional", "freed"],
)
def test_a_value_without_memory_is_refused_and_nothing_written(value: Any) -> None:
    model = holding(lambda m, x: (m.a.add_(1), m.b.add_(1))[0] * 1, a=A.clone(), b=-A)
    session = torchgil.nogil(model, (X,)).session()
    with pytest.raises(TypeError, match="assigned to a session's state has no memory of its own"):
        session.state.update(a=X, b=value())
    assert_same(session.state["a"], A)
    session.state.update(a=nn.Parameter(X), b=torch.ones(1).expand(3))
    assert session.state["b"].tolist() == [1, 1, 1]


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "vmap": lambda f: torch.vmap(f)(X),
    "functionalize": lambda f: torch.func.functionalize(f)(X),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_session_that_is_made_inside_a_transform_is_like_any_other(transform: Any) -> None:
    fast, made = torchgil.nogil(counter(), (X,)), []
    used = fast.session()
    used(X)

    def function(x: Tensor) -> Tensor:
        made.extend([fast.session(), used.copy()])
        used.reset()
        return x * x

    transform(function)
    assert_same(made[0](X), fast.session()(X))
    assert made[1].state["total"].tolist() == X.tolist()
    assert not used.state["total"].any()
