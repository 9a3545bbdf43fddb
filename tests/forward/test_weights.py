"""Weights that change after a forward was built: the new values count, or an error says to build again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrize, prune, vector_to_parameters

import torchgil

AGAIN = r"build it again with torchgil\.nogil"


class Model(nn.Module):
    """Writes to intermediates, so that what is a weight is asked in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 4)
        self.shift = torch.ones(4)  # neither a parameter nor a buffer
        self.scale = torch.ones(4, requires_grad=True)  # export detaches such a one

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        return self.last(x).add_(self.shift) * self.scale


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 16)


@pytest.fixture
def forward(model: nn.Module, x: Tensor) -> Any:
    forward = torchgil.nogil(model, (x,))
    forward(x)
    return forward


def each_data(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    for parameter in model.parameters():
        parameter.data = change(parameter.data)


def with_values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value * 2 for name, value in model.state_dict().items()}


SEEN: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: [p.data.mul_(2) for p in m.parameters()],
    "data": lambda m: each_data(m, lambda p: p * 2),
    "data of other strides": lambda m: each_data(
        m, lambda p: (p * 2).mT.contiguous().mT if p.dim() == 2 else p * 2
    ),
    "data that is a part": lambda m: each_data(m, lambda p: torch.cat([p * 2, p])[: len(p)]),
    "vector_to_parameters": lambda m: vector_to_parameters(
        parameters_to_vector(m.parameters()) * 2, m.parameters()
    ),
    "load_state_dict": lambda m: m.load_state_dict(with_values(m)),
    "an optimiser": lambda m: step(m),
    "to the same": lambda m: m.to("cpu", torch.float32),
}


def step(model: nn.Module) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 16)).sum().backward()
    optimiser.step()


@pytest.mark.parametrize("how", SEEN)
def test_new_values_of_the_same_weights_count(how: str, model: nn.Module, x: Tensor, forward: Any) -> None:
    before = forward(x)
    SEEN[how](model)
    for _ in range(20):  # freed memory comes back as an intermediate's
        with torch.inference_mode():
            assert torch.equal(forward(x), model(x))
    assert not torch.equal(forward(x), before) or how == "to the same"


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class LowRank(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.1


def merged(model: Any) -> None:
    model.first.weight.data += torch.ones(16, 2) @ torch.ones(2, 16)


def hooked_forward(model: Any) -> None:
    own = model.first.forward
    model.first.forward = lambda x: own(x) + 1


NOT_SEEN: dict[str, Callable[[Any], Any]] = {
    "to dtype": lambda m: m.to(torch.float64),
    "half": lambda m: m.half(),
    "to device": lambda m: m.to("meta"),
    "load_state_dict(assign)": lambda m: m.load_state_dict(with_values(m), assign=True),
    "a parameter assigned": lambda m: setattr(m.first, "weight", nn.Parameter(torch.ones(16, 16))),
    "a parameter deleted": lambda m: setattr(m.first, "bias", None),
    "a buffer assigned": lambda m: setattr(m.norm, "running_mean", torch.ones(16)),
    "a constant assigned": lambda m: setattr(m, "shift", torch.zeros(4)),
    "a detached constant's data": lambda m: setattr(m.scale, "data", torch.zeros(4)),
    "a module replaced": lambda m: setattr(m, "last", nn.Linear(16, 4)),
    "a LoRA adapter": lambda m: setattr(m, "first", LoRA(m.first)),
    "a LoRA adapter in the forward": hooked_forward,
    "a parametrization": lambda m: parametrize.register_parametrization(m.first, "weight", LowRank()),
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m.first),
    "pruning": lambda m: prune.l1_unstructured(m.first, "weight", 0.5),
    "data of another dtype": lambda m: each_data(m, Tensor.double),
    "data of another size": lambda m: setattr(m.first.weight, "data", torch.ones(8, 16)),
    "data of another layout": lambda m: setattr(m.first.weight, "data", m.first.weight.data.to_sparse()),
}


@pytest.mark.parametrize("how", NOT_SEEN)
def test_what_cannot_be_seen_is_an_error_and_the_forward_can_be_built_again(
    how: str, model: nn.Module, x: Tensor, forward: Any
) -> None:
    other = copy.deepcopy(forward)
    before = forward(x)
    try:
        NOT_SEEN[how](model)
    except (RuntimeError, TypeError) as error:  # torch refuses such a change itself
        assert "incompatible tensor type" in str(error)  # noqa: PT017  (it need not raise)
        assert torch.equal(forward(x), before)
        return
    with pytest.raises(RuntimeError, match=AGAIN):
        forward(x)
    assert torch.equal(other(x), before), "a deep copy has weights of its own"
    if how in (
        "to dtype",
        "load_state_dict(assign)",
        "a LoRA adapter",
        "a parametrization",
        "a module replaced",
    ):
        x = x.to(model.first.weight.dtype if how == "to dtype" else x.dtype)  # type: ignore[union-attr, arg-type]
        model = model if how != "to dtype" else nn.Sequential(model.first, nn.ReLU())  # type: ignore[arg-type]
        again = torchgil.nogil(model, (x,))
        with torch.inference_mode():
            assert torch.equal(again(x), model(x))


def test_a_merged_adapter_counts(model: nn.Module, x: Tensor, forward: Any) -> None:
    merged(model)
    with torch.inference_mode():
        assert torch.equal(forward(x), model(x))


def test_the_error_names_what_was_replaced(model: Any, x: Tensor, forward: Any) -> None:
    model.last.bias = nn.Parameter(torch.ones(4))
    with pytest.raises(RuntimeError, match=r"'last\.bias' of the model was replaced since .*" + AGAIN):
        forward(x)
    each_data(model := Model().eval(), lambda p: p)
    forward = torchgil.nogil(model, (x,))
    model.first.weight.data = torch.ones(8, 16)
    with pytest.raises(
        RuntimeError,
        match=r"'first\.weight' was float32\[16, 16\] on cpu when this forward was built, and is "
        r"float32\[8, 16\] on cpu now: " + AGAIN,
    ):
        forward(x)


class Tied(nn.Module):
    """Each tensor under two names, of which the graph reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.head.weight = self.tokens.weight
        self.twice = self.again = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(4))
        self.register_buffer("other", self.mask)
        self.shift = self.shifted = torch.ones(4)

    def forward(self, i: Tensor) -> Tensor:
        x = self.again(self.twice(self.head(self.tokens(i))))
        return x * self.mask + self.other + self.shift * self.shifted  # type: ignore[operator]


@pytest.mark.parametrize(
    "name",
    ["tokens.weight", "head.weight", "twice", "again", "mask", "other", "shift", "shifted", "twice.bias"],
)
def test_a_weight_is_looked_for_under_all_its_names(name: str) -> None:
    model, i = Tied().eval(), torch.tensor([1, 2])
    forward = torchgil.nogil(model, (i,))
    with torch.inference_mode():
        assert torch.equal(forward(i), model(i))
    path, _, last = name.rpartition(".")
    holder = model.get_submodule(path)
    old = getattr(holder, last)
    new = nn.Linear(4, 4) if isinstance(old, nn.Module) else torch.zeros_like(old)
    setattr(holder, last, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    with pytest.raises(RuntimeError, match=AGAIN):
        forward(i)


def test_what_the_graph_does_not_read_may_change() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.unread = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(x)

    model, x = Unread().eval(), torch.ones(2)
    forward = torchgil.nogil(model, (x,))
    model.unread = nn.Linear(3, 3)
    assert torch.equal(forward(x), model(x).detach())


def test_a_write_to_a_weight_with_new_memory_is_still_refused() -> None:
    """The other side: what a weight's memory is now, and not what it was, is what must not be written."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.dropout(self.weight, 0.5, False).add_(x)  # hands its argument back

    model, x = Dropped().eval(), torch.ones(4)
    forward = torchgil.nogil(model, (x,))
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="memory that it shares with an input or a weight"):
            forward(x)
        model.weight.data = torch.zeros(4)
