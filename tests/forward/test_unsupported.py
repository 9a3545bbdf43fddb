"""What cannot run from several threads, or without Python, is refused by name when it is built."""

# ruff: noqa: E501  # one case a row: a table reads better than its rows broken up
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchgil


class WeightWriter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(0, 1)
        return x * self.weight


def _set_and_write(x: Tensor) -> Tensor:
    y = torch.zeros(3)
    y.set_(x)
    y.add_(1)
    return y


def of(function: Callable[..., Any]) -> nn.Module:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    return Model()


UNSUPPORTED = [
    ("cond", lambda: of(lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))), r"node 'cond' \(.*test_unsupported.py:\d+: .*higher-order op cond; move the branch"),
    ("scan", lambda: of(lambda x: torch._higher_order_ops.scan(lambda c, y: (c + y, c * y), torch.zeros(3), x)[1]), "higher-order op scan"),
    ("while loop", lambda: of(lambda x: torch._higher_order_ops.while_loop(lambda y: y.sum() < 9, lambda y: (y + 1,), (x,))), "higher-order op while_loop"),
    ("writes to a weight", WeightWriter, r"node 'clamp_' \(.*: self.weight.clamp_\(0, 1\)\): it writes to the parameter 'weight', a data race"),
    ("writes to an input", lambda: of(lambda x: x.add_(1)), "writes to the input 'x', a data race.*returns the new value"),
    ("writes to a view of an input", lambda: of(lambda x: x.view(-1)[1:].zero_()), "writes to the input 'x'"),
    *(
        (f"writes to a view out of {what}", lambda views=views: of(lambda x: views(x)[0].add_(1)), "writes to the input 'x'")
        for what, views in {
            "split": lambda x: x.split(2), "chunk": lambda x: x.chunk(2), "unbind": lambda x: x.unbind(0),
            "tensor_split": lambda x: x.tensor_split(2), "iteration": lambda x: list(x),
        }.items()
    ),
    ("writes to the last of a list of views", lambda: of(lambda x: x.split(2)[-1].add_(1)), "writes to the input 'x'"),
    ("writes to what set_ made the input", lambda: of(_set_and_write), "writes to the input 'x'"),
    ("writes with out=", lambda: of(lambda x: torch.add(x, 1, out=x)), "writes to the input 'x'"),
    ("renormalising embedding", lambda: nn.Sequential(nn.Linear(3, 3), _Renorm()), "writes to the parameter '1.table.weight'"),
    ("dropout", lambda: of(lambda x: F.dropout(x, 0.5, training=True)), r"dropout in training mode; call model.eval\(\)"),
    ("attention dropout", lambda: of(lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1)), "attention with dropout"),
    ("rrelu", lambda: of(lambda x: F.rrelu(x, training=True)), "rrelu in training mode"),
    ("vmap", lambda: of(lambda x: torch.vmap(torch.sin)(x)), r"calls the Python function .*run_decompositions\(\{\}\)"),
]  # fmt: skip


class _Renorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 2, max_norm=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x > 0).long())


@pytest.mark.parametrize(("make", "match"), [pytest.param(*u[1:], id=u[0]) for u in UNSUPPORTED])
def test_an_unsupported_graph_is_refused_by_node_line_and_mend(
    make: Callable[[], nn.Module], match: str
) -> None:
    with pytest.raises(NotImplementedError, match=match) as error:
        torchgil.nogil(_export(make().eval(), torch.rand(2, 3) + 0.5))
    assert "nogil cannot run node '" in str(error.value)
    assert ".py:" in str(error.value)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), "dropout"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "running statistics|writes to the buffer"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "running statistics"),
        (nn.Sequential(nn.LSTM(3, 3, num_layers=2, dropout=0.5)), "dropout"),
    ],
)
def test_training_mode_is_refused_and_eval_mode_runs(model: nn.Module, what: str) -> None:
    x = torch.rand(2, 3)
    with pytest.raises(NotImplementedError, match=what):
        torchgil.nogil(_export(model.train(), x))
    torchgil.nogil(_export(model.eval(), x))(x)


def test_a_write_that_no_schema_tells_is_caught_when_it_runs() -> None:
    # dropout in eval mode hands back its argument, and its schema does not say so
    forward = torchgil.nogil(of(lambda x: F.dropout(x, 0.5, training=False).add_(1)), (torch.zeros(3),))
    x = torch.zeros(3)
    with pytest.raises(
        NotImplementedError, match=r"shares with an input or a weight(.|\n)*node 'add_' \(.*\.py:"
    ):
        forward(x)
    assert x.sum() == 0
    kept = torchgil.nogil(of(lambda x: F.dropout(x + 1, 0.5, training=False).add_(1)), (torch.zeros(3),))
    assert kept(x).sum() == 6


def test_a_write_to_what_vmap_maps_over_is_caught_when_it_runs() -> None:
    forward = torchgil.nogil(of(lambda x: torch.einsum("ij->ji", x).mul_(2)), (torch.ones(2, 3),))
    x = torch.ones(5, 2, 3)
    with pytest.raises(NotImplementedError, match="shares with an input or a weight"):
        torch.vmap(forward)(x)
    assert x.sum() == 30
    kept = torchgil.nogil(of(lambda x: torch.einsum("ij->ji", x + 1).mul_(2)), (torch.ones(2, 3),))
    assert torch.vmap(kept)(x).sum() == 120


def test_a_copy_that_may_be_a_view_is_judged_when_it_runs() -> None:
    forward = torchgil.nogil(of(lambda x: x.contiguous().add_(1)), (torch.zeros(2, 3).mT,))
    strided, dense = torch.zeros(2, 3).mT, torch.zeros(3, 2)
    assert forward(strided).sum() == 6
    assert strided.sum() == 0
    with pytest.raises(NotImplementedError, match="data race"):
        forward(dense)
    assert dense.sum() == 0


def test_quantised_modules_are_refused_by_export_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao says that it moves
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)).eval(), {nn.Linear})
    with pytest.raises(AttributeError, match="LinearPackedParamsBase"):
        torchgil.nogil(model, (torch.ones(2, 4),))


def test_a_recurrent_layer_as_the_whole_model_runs_or_is_refused_with_the_release_that_runs_it() -> None:
    model, x = nn.GRU(3, 3).eval(), torch.rand(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.__version__.startswith("2.9."):
            with pytest.raises(NotImplementedError, match=r"does not export an LSTM, GRU .*torch 2\.13 does"):
                torchgil.nogil(model, (x,))
        else:
            assert torch.equal(torchgil.nogil(model, (x,))(x)[0], model(x)[0])


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"nn\.Module or an ExportedProgram, got function"):
        torchgil.nogil(lambda x: x, (torch.ones(1),))
    with pytest.raises(TypeError, match="args must be a tuple"):
        torchgil.nogil(nn.Linear(2, 2), torch.ones(1))
    with pytest.raises(ValueError, match="backend must be 'graph' or 'inductor', got 'eager'"):
        torchgil.nogil(nn.Linear(2, 2), (torch.ones(1, 2),), backend="eager")
    with pytest.raises(ValueError, match="runners and cache_dir are for backend='inductor'"):
        torchgil.nogil(nn.Linear(2, 2), (torch.ones(1, 2),), runners=2)
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    with pytest.raises(ValueError, match="has its dynamic shapes already"):
        torchgil.nogil(program, dynamic_shapes={})
    assert torchgil.nogil(program, (torch.ones(1, 2),))(torch.ones(1, 2)).shape == (1, 2)


def _export(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (x,))


@pytest.mark.parametrize("views", [Tensor.split, Tensor.chunk], ids=["split", "chunk"])
def test_views_of_the_graphs_own_values_may_be_written(views: Callable[..., Any]) -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        first, *_ = views(y, 2)
        first.mul_(5)
        return y

    x = torch.ones(3)
    forward = torchgil.nogil(of(function), (torch.zeros(3),))
    assert torch.equal(forward(x), function(x))
    assert torch.equal(x, torch.ones(3))
