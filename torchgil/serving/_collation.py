"""How requests become a batch and a batch's result becomes theirs: pytrees of tensors, joined and split by
rows."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Collation"]

_PLAIN = (Tensor, torch.nn.Parameter)
_has_names = getattr(Tensor, "has_names", lambda _: False)  # torch 2.13 has no named tensors any more


class _Structure:
    """A request's pytree structure; one that cannot be compared, as with arrays in it, equals no other."""

    __slots__ = ("_hash", "_written", "spec")

    def __init__(self, spec: TreeSpec) -> None:
        self.spec = spec
        self._hash = hash(spec)
        self._written: str | None = None

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        try:
            # 1, 1.0 and True are equal, as keys of a dict for example, but only one of them would reach the
            # function. As text they differ. An address in the text says nothing about what is equal.
            return (
                isinstance(other, _Structure)
                and bool(self.spec == other.spec)
                and self.written() == other.written()
            )
        except Exception:
            return False

    def written(self) -> str:
        """The structure as text, without the addresses of objects."""
        if self._written is None:
            self._written = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.spec))
        return self._written


def _traits(x: Tensor) -> Any:
    """What must be equal for `torch.cat` to join two tensors and leave the rows of both as they are.

    None: `cat` refuses tensors of this kind, or what it makes of them is for their class to say (sparse,
    nested, named, quantised per channel, subclasses). Such a request is a batch of its own.
    """
    if type(x) not in _PLAIN or x.is_nested or x.layout is not torch.strided:
        return None
    traits = (x.dtype, x.device, x.shape[1:], x.requires_grad)
    if x.is_quantized:  # cat gives all rows the first tensor's scale, and cuts off what is beyond its range
        if x.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return None
        return *traits, x.qscheme(), x.q_scale(), x.q_zero_point()
    return None if _has_names(x) else traits


class Collation:
    """Joins requests and splits results; each of the three steps can be the user's own.

    Args:
        collate: `collate(requests) -> batch` in place of concatenation. Requests are then of any type and are
            never grouped; one that is no pytree of tensors counts as one row unless `rows` says otherwise.
        split: `split(result, rows) -> results` in place of slicing; `rows` are those of each request, in
            order.
        rows: `rows(request) -> int` in place of the first dimension.
        copy: True: a request's part of a batch's result owns its memory; False: it is a view.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Any] | None = None,
        split: Callable[[Any, list[int]], Sequence[Any]] | None = None,
        rows: Callable[[Any], int] | None = None,
        *,
        copy: bool = True,
    ) -> None:
        self._cut: Callable[..., Any] = torch.split_with_sizes_copy if copy else torch.split_with_sizes
        self._collate = collate
        self._split = split
        self._rows = rows

    def prepare(self, x: Any) -> tuple[Any, int, Any]:
        """What to queue for the request `x`: payload, rows, and a key equal for requests that go together.

        Raises:
            TypeError, ValueError: Where `x` cannot be batched; also whatever the user's `rows` raises.
        """
        if self._collate is not None:
            return x, self._count(x), None
        if self._rows is None and type(x) is Tensor:  # the common case, kept short
            return x, _common_rows([x]), _traits(x) or object()
        leaves, spec = tree_flatten(x)
        rows = _common_rows(leaves)
        if self._rows is not None:
            rows = self._count(x)
        traits = tuple("none" if leaf is None else _traits(leaf) for leaf in leaves)
        return leaves, rows, (_Structure(spec), object() if None in traits else traits)

    def join(self, payloads: list[Any], key: Any) -> Any:
        """The batch of `payloads`, which share `key`. Always a copy, so that the function may write to it."""
        if self._collate is not None:
            return self._collate(payloads)
        if type(payloads[0]) is not list:
            return _join(payloads)
        spec: TreeSpec = key[0].spec
        columns = zip(*payloads, strict=True)
        return tree_unflatten([_join(column) for column in columns], spec)

    def share(self, result: Any, rows: list[int]) -> Sequence[Any]:
        """The part of `result` that belongs to each request.

        Raises:
            TypeError, ValueError: Where the result does not have the batch's rows; also whatever `split`
                raises.
        """
        if self._split is not None:
            results = list(self._split(result, rows))  # a lazy sequence would raise amid the telling
            if len(results) != len(rows):
                raise ValueError(f"split returned {len(results)} results for {len(rows)} requests")
            return results
        if isinstance(result, Tensor):
            return self._split_leaf(result, rows)
        leaves, spec = tree_flatten(result)
        if all(leaf is None for leaf in leaves):
            raise TypeError(
                f"the batched function must return tensors, got {type(result).__name__} without any"
            )
        columns = [self._split_leaf(leaf, rows) for leaf in leaves]
        return [tree_unflatten(list(row), spec) for row in zip(*columns, strict=True)]

    def _count(self, x: Any) -> int:
        if self._rows is None:
            leaves, _ = tree_flatten(x)
            tensors = all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves)
            return _common_rows(leaves) if leaves and tensors else 1
        rows = operator.index(self._rows(x))
        if rows < 0:
            raise ValueError(f"rows(request) must not be negative, got {rows}")
        return rows

    def _split_leaf(self, leaf: Any, rows: list[int]) -> Sequence[Any]:
        if leaf is None:
            return [None] * len(rows)
        total = sum(rows)
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"the batched function must return a tensor or a pytree of tensors with {total} rows, found "
                f"{type(leaf).__name__} in its result; give Batcher(split=...) to split anything else"
            )
        if leaf.dim() == 0 or leaf.size(0) != total:
            what = "a nested tensor" if leaf.is_nested else f"a tensor of shape {list(leaf.shape)}"
            raise ValueError(f"the batched function returned {what} for a batch of {total} rows")
        if len(rows) == 1:
            return [leaf]
        if leaf.layout is torch.sparse_coo:  # has no views, and is not split
            ends = itertools.accumulate(rows)
            return [torch.narrow_copy(leaf, 0, end - n, n) for n, end in zip(rows, ends, strict=True)]
        return cast("Sequence[Any]", self._cut(leaf, rows))


def _join(tensors: Sequence[Any]) -> Any:
    if tensors[0] is None:
        return None
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0].clone()


def _common_rows(leaves: list[Any]) -> int:
    rows = None
    for leaf in leaves:
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"a request must be a tensor or a pytree of tensors, found {type(leaf).__name__} in it; "
                "give Batcher(collate=...) to batch anything else"
            )
        if leaf.dim() == 0:
            raise ValueError(
                "a request's tensors need a leading row dimension, got shape []; use x.unsqueeze(0)"
            )
        if rows is not None and leaf.size(0) != rows:
            raise ValueError(
                f"a request's tensors must have the same number of rows, got {rows} and {leaf.size(0)}"
            )
        rows = leaf.size(0)
    if rows is None:
        raise TypeError(
            "a request must have at least one tensor; give Batcher(collate=...) to batch anything else"
        )
    return rows
