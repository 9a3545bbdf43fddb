"""Arguments to a flat list and results back, by the structure export saw."""

from __future__ import annotations

import inspect
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
import torch.utils._pytree as pytree

from torchgil.forward._sources import Path, by_parameter, parameters_of
from torchgil.forward._torch_compat import children

__all__ = ["Arguments", "NotPickled", "Results", "leaf_names", "to_pickle"]

_DICTS: Final = (dict, OrderedDict, defaultdict)


class NotPickled:
    """Stands for a parameter's default that cannot be pickled: the copy takes none there."""


def to_pickle(signature: inspect.Signature) -> inspect.Signature:
    """The signature less the defaults that cannot be pickled, such as a lambda."""
    return signature.replace(
        parameters=[
            p if _pickles(p.default) else p.replace(default=NotPickled) for p in signature.parameters.values()
        ]
    )


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # whatever its own way to be pickled raises
        return False
    return True


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
        self._expected = self._parameters()
        self._flat = not self._kwargs and all(child.is_leaf() for child in self._args)
        self._count = len(self._args)

    def _parameters(self) -> list[Path]:
        """What takes each exported argument. A name does not tell: ``rest_0`` may stand beside ``*rest``."""
        if self._signature is not None:
            taken = parameters_of(self._signature, len(self._args), self._kwargs)
            return [
                *(taken[0, place] for place in range(len(self._args))),
                *(taken[1, name] for name in self._kwargs),
            ]
        names = [*self._names, *self._kwargs]
        # Of two that the program calls alike none can be meant by name.
        positional = [
            (name,) if names.count(name) == 1 else (f"argument {place}",)
            for place, name in enumerate(self._names)
        ]
        return [*positional, *((name,) for name in self._kwargs)]

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
        defaults: dict[Path, Any] = {}
        if self._signature is not None:
            given = by_parameter(self._signature, args, kwargs)
            defaults = {
                (name,): parameter.default
                for name, parameter in self._signature.parameters.items()
                if not any(parameter.default is none for none in (inspect.Parameter.empty, NotPickled))
            }
        else:
            if len(args) > self._count:
                raise TypeError(f"nogil: expected at most {self._count} positional inputs, got {len(args)}")
            given = dict(zip(self._expected, args, strict=False))
            by_name = {(name,): value for name, value in kwargs.items()}
            if twice := given.keys() & by_name.keys():
                raise TypeError(f"nogil: got two values for {_named(twice)}")
            given.update(by_name)
        for path in given.keys() - set(self._expected):
            if path in defaults and _equal(given[path], defaults[path]):
                continue
            raise TypeError(
                f"nogil: argument {_named([path])} was not exported (the inputs are "
                f"{_named(self._expected)}); export with it to be able to pass it"
            )
        missing = [path for path in self._expected if path not in given and path not in defaults]
        if missing:
            raise TypeError(
                f"nogil: missing {_named(missing)}; expected {len(self._expected)} inputs: "
                f"{_named(self._expected)}"
            )
        values = [given[path] if path in given else defaults[path] for path in self._expected]
        return tuple(values[: self._count]), dict(zip(self._kwargs, values[self._count :], strict=True))


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
    """Exact, as constants are compared: neither True passes for 1 nor 0.0 for -0.0, and NaN is NaN."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (float, complex)):
        return repr(a) == repr(b)
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(_equal, a.items(), b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return (a == b) is True  # of arrays and tensors it is no bool


def _named(paths: Iterable[Path]) -> str:
    """Parameters as the exported program calls them."""
    return _listed([_name(*path) for path in paths])


def _name(parameter: str, item: Any = None) -> str:
    if item is None:
        return parameter
    return f"{parameter}_{item.idx}" if isinstance(item, pytree.SequenceKey) else str(item.key)


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


def _type_name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
