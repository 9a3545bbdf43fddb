"""Random modules that write to their buffers: sessions, from threads, against a copy for each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchgil
from tests.conftest import in_threads
from tests.forward.comparing import assert_same
from tests.forward.stateful import NoFunctionalGraphError, exported

# A copy of an exported module uses what torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

# No shrinking: an example takes an export, and a failure would be shrunk for minutes. It is shown as found.
BOUNDED = settings(deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def assign(m: Any, x: Tensor) -> None:
    m.assigned = m.assigned + x[0]


def swap(m: Any, x: Tensor) -> None:
    first = m.a.clone()
    m.a.copy_(m.b)
    m.b.copy_(first)


# Each writes to some of the buffers, from others and from the argument.
WRITES: list[Callable[[Any, Tensor], Any]] = [
    lambda m, x: m.a.add_(x),
    lambda m, x: m.a.mul_(0.5).sub_(m.b),
    lambda m, x: m.b.copy_(m.a),
    lambda m, x: m.a[1:].copy_(x[1:]),
    lambda m, x: m.a.split(2, 1)[1].neg_(),
    lambda m, x: m.a.view(-1)[::3].add_(m.n),
    lambda m, x: m.n.add_(1),
    lambda m, x: m.ring.index_copy_(0, m.n.reshape(1) % 5, x[:1]),
    lambda m, x: m.ring.index_put_((torch.tensor([0, 2]),), x[:2], accumulate=True),
    lambda m, x: m.part_of_a.add_(1),
    lambda m, x: m.turned.add_(x.mT),
    lambda m, x: m.flags.logical_xor_(x > 0),
    lambda m, x: m.halves.copy_(x[0]),
    lambda m, x: torch.add(x, m.b, out=m.a),
    lambda m, x: m.a.masked_fill_(m.flags, 0.0),
    lambda m, x: m.lifted.add_(x[0]),
    lambda m, x: m.a.clamp_(-2, 2).add_(m.weight),
    assign,
    swap,
]
READS: list[Callable[[Any, Tensor], Any]] = [
    lambda m, x: m.a * 1,
    lambda m, x: m.a,
    lambda m, x: m.part_of_a.sum(),
    lambda m, x: (m.a @ m.turned, m.ring.mT),
    lambda m, x: m.ring.index_select(0, m.n.reshape(1) % 5),
    lambda m, x: m.unwritten + x * m.weight,
    lambda m, x: m.assigned * m.lifted + m.halves,
]


class Steps(nn.Module):
    """Some writes and reads, drawn by hypothesis."""

    def __init__(self, steps: tuple[int, ...], reads: tuple[int, ...]) -> None:
        super().__init__()
        self.steps, self.reads = steps, reads
        generator = torch.Generator().manual_seed(0)

        def values(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.weight = nn.Parameter(values(4))
        self.lifted = values(4)  # no buffer
        a = values(3, 4)
        for name, tensor in {
            "a": a,
            "part_of_a": a[1],
            "b": values(3, 4),
            "n": torch.zeros((), dtype=torch.long),
            "ring": values(5, 4),
            "turned": values(3, 4).mT,
            "flags": torch.zeros(3, 4).bool(),
            "halves": values(4).half(),
            "assigned": values(4),
            "unwritten": values(3, 4),
        }.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> list[Any]:
        for i in self.steps:
            WRITES[i](self, x)
        return [READS[i](self, x) for i in self.reads]


steps = st.lists(st.integers(0, len(WRITES) - 1), min_size=1, max_size=6).map(tuple)
reads = st.lists(st.integers(0, len(READS) - 1), min_size=1, max_size=4).map(tuple)


def argument(seed: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def built(model: nn.Module, functional: bool) -> tuple[Any, nn.Module]:
    """The forward, and the module that its sessions are to do as.

    torch's functional graph leaves out the rounding where a buffer of lower precision is written to: so of
    one the exported module is what counts.
    """
    try:
        program = exported(model, argument(0), functional=functional)
    except NoFunctionalGraphError:
        functional, program = False, exported(model, argument(0))
    return torchgil.nogil(program), program.module() if functional else model


def clones(results: Any) -> Any:
    """As they are now: one that is a buffer changes with the next call."""
    return torch.utils._pytree.tree_map(torch.clone, results)


@settings(BOUNDED, max_examples=25)
@given(
    steps=steps,
    reads=reads,
    functional=st.booleans(),
    calls=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), min_size=2, max_size=4),
    branch=st.integers(0, 5),
)
def test_sessions_from_threads_do_what_a_module_of_their_own_does_alone(
    steps: Any, reads: Any, functional: bool, calls: list[list[int]], branch: int
) -> None:
    fast, model = built(Steps(steps, reads).eval(), functional)

    def run(i: int, step: Any, copied: Callable[[Any], Any]) -> list[Any]:
        results: list[Any] = []
        for place, seed in enumerate(calls[i]):
            if place == branch:  # one that goes another way from here on
                other = copied(step)
                results += [clones(other(argument(1000 + i))), clones(other(argument(seed)))]
            results.append(clones(step(argument(seed))))
        return results

    with torch.inference_mode():
        want = [run(i, copy.deepcopy(model), copy.deepcopy) for i in range(len(calls))]
    got = in_threads(lambda i: run(i, fast.session(), lambda session: session.copy()), len(calls))
    assert_same(got, want)


@settings(BOUNDED, max_examples=10)
@given(steps=steps, functional=st.booleans(), order=st.lists(st.integers(0, 2), min_size=3, max_size=12))
def test_calls_of_sessions_in_any_order_do_not_meet(steps: Any, functional: bool, order: list[int]) -> None:
    fast, model = built(Steps(steps, (0, 3, 5)).eval(), functional)
    sessions = [fast.session() for _ in range(3)]
    with torch.inference_mode():
        models = [copy.deepcopy(model) for _ in range(3)]
        for seed, i in enumerate(order):
            if seed % 5 == 4:
                sessions[i].reset()
                models[i] = copy.deepcopy(model)
            assert_same(sessions[i](argument(seed)), models[i](argument(seed)))
    for session, alone in zip(sessions, models, strict=True):
        buffers = dict(alone.named_buffers(remove_duplicate=False))
        assert_same(
            {name: tensor for name, tensor in session.state.items() if name in buffers},
            {name: tensor for name, tensor in buffers.items() if name in session.state},
        )
