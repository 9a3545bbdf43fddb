"""Whatever kinds of tensors come together, each request is answered as it would be alone."""

from __future__ import annotations

import collections
import math
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree

import torchgil

# torch warns once of each kind that it means to drop, so that the first request would differ from the second.
pytestmark = pytest.mark.filterwarnings("ignore")


class Later(Executor):
    """Runs what it was given when it is told to, in the calling thread: until then all requests queue."""

    def __init__(self):
        self.queued = collections.deque()

    def submit(self, fn, /, *args, **kwargs):
        self.queued.append((fn, args, kwargs, Future()))
        return self.queued[-1][-1]

    def run(self):
        while self.queued:
            fn, args, kwargs, future = self.queued.popleft()
            future.set_result(fn(*args, **kwargs))


class Image(torch.Tensor):
    """A subclass that says nothing about `cat`."""


class Scaled(torch.Tensor):
    """A subclass whose rows mean something only with what the whole tensor has."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        source = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        if isinstance(result, Scaled):
            result.scale = getattr(source, "scale", 1.0)
        return result


def _quantised(x, scale=0.1, zero=3, dtype=torch.quint8):
    return torch.quantize_per_tensor(x.float(), scale, zero, dtype)


def _per_channel(x):
    columns = x.shape[1]
    return torch.quantize_per_channel(
        x.float(), torch.arange(1, columns + 1) / 10, torch.zeros(columns), 1, torch.qint8
    )


def _in_inference_mode(x):
    with torch.inference_mode():
        return x.clone()


def _scaled(x, scale):
    x = x.as_subclass(Scaled)
    x.scale = scale
    return x


MAKES = {
    "float32": lambda x: x,
    "float64": torch.Tensor.double,
    "float16": torch.Tensor.half,
    "int64": torch.Tensor.long,
    "bool": torch.Tensor.bool,
    "complex64": lambda x: x.to(torch.complex64),
    "conjugated": lambda x: (x * 1j).conj(),
    "negated": lambda x: (x * 1j).conj().imag,
    "requires grad": lambda x: x.clone().requires_grad_(),
    "with a graph": lambda x: x.clone().requires_grad_() * 2,
    "a parameter": torch.nn.Parameter,
    "a frozen parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "in inference mode": _in_inference_mode,
    "transposed": lambda x: x.t().contiguous().t(),
    "expanded": lambda x: x[:1, :1].expand(x.shape),
    "sparse": torch.Tensor.to_sparse,
    "sparse, coalesced": lambda x: x.to_sparse().coalesce(),
    "sparse rows": lambda x: x.to_sparse(1),
    "compressed": torch.Tensor.to_sparse_csr,
    "of oneDNN": torch.Tensor.to_mkldnn,
    "meta": lambda x: x.to("meta"),
    "quantised": _quantised,
    "quantised, another scale": lambda x: _quantised(x, 1.0),
    "quantised, another zero point": lambda x: _quantised(x, 0.1, 100),
    "quantised, signed": lambda x: _quantised(x, 0.1, 3, torch.qint8),
    "quantised per channel": _per_channel,
    "nested": lambda x: torch.nested.nested_tensor([row[: i + 1] for i, row in enumerate(x)]),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "a subclass": lambda x: x.as_subclass(Image),
    "a subclass with a scale": lambda x: _scaled(x, 2.0),
    "a subclass with another": lambda x: _scaled(x, 3.0),
    "one dimension": lambda x: x[:, 0],
    "three": lambda x: x.unsqueeze(2),
    "no row": lambda x: x[:0],
    "no dimension": lambda x: x.sum(),
    "an array": lambda x: x.numpy(),
    "a number": lambda x: 1.0,
    "nothing": lambda x: None,
    "a tuple": lambda x: (x, x),
    "a list": lambda x: [x, x],
    "with none": lambda x: (x, None),
    "a dict": lambda x: {"a": x, "b": x},
    "a dict, another order": lambda x: {"b": x, "a": x},
    "keyed by an int": lambda x: {1: x},
    "keyed by a float": lambda x: {1.0: x},
    "keyed by a bool": lambda x: {True: x},
    "keyed by zero": lambda x: {0.0: x},
    "keyed by minus zero": lambda x: {-0.0: x},
    "keyed by no number": lambda x: {math.nan: x},
    "sparse in a tuple": lambda x: (x, x.to_sparse()),
    "quantised in a dict": lambda x: {"a": _quantised(x), "b": x},
    "of unlike rows": lambda x: (x, x[:-1]),
}


@dataclass(frozen=True)
class Kind:
    """A request, made anew for each use."""

    make: str
    rows: int
    value: float

    def request(self):
        x = torch.arange(2.0 * self.rows).reshape(self.rows, 2) + self.value
        if self.rows:
            x[0, 0] = 0  # so that a sparse one is sparse
        return MAKES[self.make](x)


def first_leaf(batch):
    return next(leaf for leaf in _pytree.tree_leaves(batch) if leaf is not None)


def traits(batch):
    """What a function may see of its batch, as numbers of each row."""
    leaves = [leaf for leaf in _pytree.tree_leaves(batch) if leaf is not None]
    seen = "".join(
        f"{type(leaf)} {leaf.dtype} {leaf.layout} {leaf.device} {leaf.requires_grad} {leaf.is_quantized} "
        f"{leaf.is_nested} {getattr(leaf, 'scale', None)} {leaf.dim()}"
        for leaf in leaves
    )
    seen += repr(_pytree.tree_structure(batch))
    return torch.full((leaves[0].size(0), 1), sum(map(ord, seen)))


FUNCTIONS = {
    "the batch itself": lambda batch: batch,
    "twice it": lambda batch: _pytree.tree_map(lambda leaf: leaf if leaf is None else leaf + leaf, batch),
    "its values": lambda batch: (
        first_leaf(batch).dequantize() if first_leaf(batch).is_quantized else first_leaf(batch).to_dense()
    ),
    "its traits": traits,
    "something sparse": lambda batch: first_leaf(batch).to_dense().float().to_sparse(),
    "something quantised": lambda batch: _quantised(first_leaf(batch).detach().to_dense()),
}


def described(result):
    """A result so that it can be compared: whatever a caller can see of it."""
    if isinstance(result, BaseException):
        return type(result), str(result)
    leaves, spec = _pytree.tree_flatten(result)
    return repr(spec), [described_leaf(leaf) for leaf in leaves]


def described_leaf(leaf):
    if leaf is None:
        return None
    about = [
        type(leaf),
        leaf.dtype,
        leaf.device,
        leaf.layout,
        leaf.requires_grad,
        getattr(leaf, "scale", None),
    ]
    if leaf.is_nested:
        return about, repr([part.tolist() for part in leaf.unbind()])
    about.append(tuple(leaf.shape))
    if leaf.is_quantized:
        about.append(leaf.qscheme())
        if leaf.qscheme() == torch.per_tensor_affine:
            about += [leaf.q_scale(), leaf.q_zero_point()]
        leaf = leaf.dequantize()
    if leaf.device.type == "meta":
        return about, None
    # As text NaN equals NaN, and 0.0 does not equal -0.0.
    return about, repr(leaf.detach().to_dense().as_subclass(torch.Tensor).resolve_conj().tolist())


def ask(fn, kinds, **options):
    executor = Later()
    batcher = torchgil.Batcher(fn, executor=executor, max_delay=0, **options)
    futures = [batcher.submit(kind.request()) for kind in kinds]
    executor.run()
    batcher.shutdown(timeout=0)
    errors = [future.exception(0) for future in futures]
    return [
        described(future.result() if error is None else error)
        for future, error in zip(futures, errors, strict=True)
    ]


kinds = st.builds(
    Kind, st.sampled_from(sorted(MAKES)), st.integers(1, 3), st.sampled_from([0.0, 1.0, 20.0, math.nan])
)


def check(fn, several, **options):
    with torchgil.intra_op_threads(1):  # the tensors are tiny
        _check(fn, several, **options)


def _check(fn, several, **options):
    alone = [ask(FUNCTIONS[fn], [kind], **options)[0] for kind in several]
    assert ask(FUNCTIONS[fn], several, **options) == alone


@settings(max_examples=150, deadline=None)
@given(
    fn=st.sampled_from(sorted(FUNCTIONS)),
    several=st.lists(kinds, min_size=2, max_size=4),
    copy=st.booleans(),
    retry=st.booleans(),
)
def test_each_answer_is_that_of_the_request_alone(fn, several, copy, retry):
    check(fn, several, copy=copy, retry_halves=retry)


@pytest.mark.parametrize("make", sorted(MAKES))
@pytest.mark.parametrize("fn", sorted(FUNCTIONS))
def test_so_is_each_beside_one_of_its_own_kind_and_beside_a_plain_one(fn, make):
    check(fn, [Kind(make, 1, 1.0), Kind(make, 2, 20.0), Kind("float32", 2, 3.0)], retry_halves=False)


def test_plain_rows_are_batched_and_what_cat_would_change_is_not():
    sizes = []

    def fn(batch):
        sizes.append(first_leaf(batch).size(0))
        return torch.zeros(sizes[-1])

    ask(
        fn, [Kind("float32", 2, 0.0), Kind("sparse", 2, 0.0), Kind("float32", 2, 0.0), Kind("sparse", 2, 0.0)]
    )
    assert sorted(sizes) == [2, 2, 4]
    sizes.clear()
    ask(fn, [Kind(make, 2, 0.0) for make in ("quantised", "quantised, another scale", "quantised")])
    assert sorted(sizes) == [2, 4]
