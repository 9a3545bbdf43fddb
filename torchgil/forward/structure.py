"""Arguments to a flat list and results back, by the structure export saw."""

from __future__ import annotations

import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.utils._pytree as pytree

from torchgil.forward.torch_compat import children

__all__ = ["Arguments", "Results", "leaf_names"]

_DICTS: Final = (dict, OrderedDict, defaultdict)


class Arguments:
    """Flattens a call's arguments as export flattened its own.

    Args:
        spec: The exported `(args, kwargs)`.
        names: The argument names in order.
        signature: The model's own signature, if there is a model: lets a caller give by keyword what was
            exported by position, and leave out what has its default.
    """

    def __init__(
        self, spec: pytree.TreeSpec, names: Sequence[str], signature: inspect.Signature | None
    ) -> None:
        args, kwargs = children(spec)
        self._args: list[pytree.TreeSpec] = children(args)
        self._kwargs: dict[str, pytree.TreeSpec] = dict(zip(kwargs.context, children(kwargs), strict=True))
        self._names = [names[i] if i < len(names) else f"argument {i}" for i in range(len(self._args))]
        self._signature = signature
        self._flat = not self._kwargs and all(child.is_leaf() for child in self._args)
        self._count = len(self._args)

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """The leaves in export's order.

        Raises:
            TypeError: The structure is another one than was exported.
        """
        if not kwargs and self._flat and len(args) == self._count:
            return args
        if len(args) != self._count or kwargs.keys() != self._kwargs.keys():
            args, kwargs = self._bind(args, kwargs)
        leaves: list[Any] = []
        for name, spec, value in zip(self._names, self._args, args, strict=True):
            _flatten(name, spec, value, leaves)
        for name, spec in self._kwargs.items():
            _flatten(name, spec, kwargs[name], leaves)
        return leaves

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call, with arguments by position and by keyword as they were exported."""
        given: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        if self._signature is not None:
            bound = self._signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                kind = self._signature.parameters[name].kind
                if kind is inspect.Parameter.VAR_POSITIONAL:
                    given.update({f"{name}_{i}": v for i, v in enumerate(value)})
                elif kind is inspect.Parameter.VAR_KEYWORD:
                    given.update(value)
                else:
                    given[name] = value
            defaults = {
                name: parameter.default
                for name, parameter in self._signature.parameters.items()
                if parameter.default is not inspect.Parameter.empty
            }
        else:
            if len(args) > self._count:
                raise TypeError(f"nogil: expected at most {self._count} positional inputs, got {len(args)}")
            given.update(zip(self._names, args, strict=False))
            if twice := given.keys() & kwargs.keys():
                raise TypeError(f"nogil: got two values for {_listed(twice)}")
            given.update(kwargs)
        expected = [*self._names, *self._kwargs]
        for name in given.keys() - set(expected):
            if name in defaults and (given[name] is defaults[name] or _equal(given[name], defaults[name])):
                continue
            raise TypeError(
                f"nogil: argument {name!r} was not exported (the inputs are {_listed(expected)}); "
                "export with it to be able to pass it"
            )
        missing = [name for name in expected if name not in given and name not in defaults]
        if missing:
            raise TypeError(
                f"nogil: missing {_listed(missing)}; expected {len(expected)} inputs: {_listed(expected)}"
            )
        values = {name: given[name] if name in given else defaults[name] for name in expected}
        return tuple(values[name] for name in self._names), {name: values[name] for name in self._kwargs}


def leaf_names(spec: pytree.TreeSpec, names: Sequence[str]) -> list[str]:
    """Each leaf of the exported `(args, kwargs)` as errors name it."""
    leaves: list[Any] = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(spec.num_leaves), spec))[0]
    found: list[str] = []
    for (kind, first, *rest), _ in leaves:
        if kind.idx == 1:
            name = f"argument {first.key!r}"
        else:
            name = f"argument {names[first.idx]!r}" if first.idx < len(names) else f"argument {first.idx}"
        found.append(name + pytree.keystr(tuple(rest)))
    return found


class Results:
    """Puts results into the structure the model returns.

    Args:
        spec: The exported output.
        constants: For each flat output `(True, value)` if export took it as a constant, else `(False, None)`.
    """

    def __init__(self, spec: pytree.TreeSpec, constants: Sequence[tuple[bool, Any]]) -> None:
        self._spec = spec
        self._constants = list(constants) if any(known for known, _ in constants) else None
        self._leaf = spec.is_leaf()
        self._plain = (
            {tuple: tuple, list: list}.get(spec.type) if all(c.is_leaf() for c in children(spec)) else None
        )

    def unflatten(self, values: list[Any]) -> Any:
        """The model's output from the program's values."""
        if self._constants is not None:
            rest = iter(values)
            values = [value if known else next(rest) for known, value in self._constants]
        if self._leaf:
            return values[0]
        if self._plain is not None:
            return self._plain(values)
        return pytree.tree_unflatten(values, self._spec)


def _flatten(name: str, spec: pytree.TreeSpec, value: Any, leaves: list[Any]) -> None:
    if spec.is_leaf():
        leaves.append(value)
        return
    kind = pytree._get_node_type(value)
    if kind is not spec.type and not {kind, spec.type} <= {torch.Size, tuple}:
        raise TypeError(
            f"nogil: argument {name!r} was exported as {_type_name(spec.type)} with {spec.num_children} "
            f"entries, got {_type_name(type(value))}"
        )
    if spec.type in _DICTS:
        keys = spec.context[1] if spec.type is defaultdict else spec.context
        if value.keys() != set(keys):
            raise TypeError(
                f"nogil: argument {name!r} was exported with the keys {_listed(keys)}, got "
                f"{_listed(value.keys())}"
            )
        # by key: export took the example's order, a caller may have another
        for key, child in zip(keys, children(spec), strict=True):
            _flatten(f"{name}[{key!r}]", child, value[key], leaves)
        return
    values, context = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
    if len(values) != spec.num_children or (context != spec.context and kind is spec.type):
        raise TypeError(
            f"nogil: argument {name!r} was exported as {_type_name(spec.type)} with {spec.num_children} "
            f"entries, got {len(values)}"
            + ("" if len(values) != spec.num_children else f" of another shape: {context}")
        )
    for index, (child, child_value) in enumerate(zip(children(spec), values, strict=True)):
        _flatten(f"{name}[{index}]", child, child_value, leaves)


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, torch.Tensor) and bool(a == b)


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


def _type_name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
