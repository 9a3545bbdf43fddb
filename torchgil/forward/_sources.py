"""Which leaf of the arguments is meant, where it is written otherwise than by its number.

Guards name a leaf by the forward's own parameters (``L['x'][1]``), `dynamic_shapes` by the same structure,
errors as a user would write it. An exported program lists its arguments with ``*rest`` taken apart into
``rest_0``, ``rest_1``, and a parameter may be called ``rest_1`` itself: so the parameter and the keys inside
it are kept apart here, and no two of them are put together into one name.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch.utils._pytree as pytree

from torchgil.forward._torch_compat import children

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = [
    "Path",
    "Place",
    "Sources",
    "argument_names",
    "by_parameter",
    "declared_for",
    "parameters_of",
    "places",
]

# The parameter's name, and then keys of pytree: of a sequence, a mapping or a field.
Path: TypeAlias = "tuple[Any, ...]"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one leaf is.

    Attributes:
        name: As the user writes it: ``batch['mask']``.
        paths: As the forward's own parameters name it, most likely one first. Where the signature is not
            known there may be two: ``rest_1`` is a parameter of that name, or an item of ``*rest``.
    """

    name: str
    paths: tuple[Path, ...]


def argument_names(program: ExportedProgram) -> list[str]:
    """The arguments in order, those by keyword last; empty where the program does not say."""
    signature = program.module_call_graph[0].signature if program.module_call_graph else None
    return list(getattr(signature, "forward_arg_names", None) or ())


def places(
    program: ExportedProgram, fallbacks: Sequence[str], signature: inspect.Signature | None
) -> list[Place]:
    """Each leaf's place, in the order in which the arguments flatten.

    Args:
        program: The exported program.
        fallbacks: A name for each leaf whose argument has none.
        signature: The forward's own, if it is known.
    """
    assert program.call_spec.in_spec is not None
    args, kwargs = children(program.call_spec.in_spec)
    names = dict(enumerate(argument_names(program)))
    positional = [names.get(i) for i in range(len(children(args)))]
    roots = (
        _likely_roots(positional, kwargs.context)
        if signature is None
        else {a: [path] for a, path in parameters_of(signature, len(positional), kwargs.context).items()}
    )
    found: list[Place] = []
    for (kind, first, *rest), fallback in zip(_leaves(program, len(fallbacks)), fallbacks, strict=True):
        argument = first.key if kind.idx == 1 else first.idx
        name = str(argument) if kind.idx == 1 else (positional[argument] or fallback)
        paths = tuple((*root, *rest) for root in roots.get((kind.idx, argument), ()))
        found.append(Place(name + pytree.keystr(tuple(rest)), paths))
    return found


def _leaves(program: ExportedProgram, count: int) -> list[tuple[Any, ...]]:
    """For each leaf: 0 or 1 for args or kwargs, the position or keyword, then the keys inside."""
    if program.example_inputs is not None:
        paths = [path for path, _ in pytree.tree_flatten_with_path(program.example_inputs)[0]]
        if len(paths) == count:
            return paths
    spec = program.call_spec.in_spec
    return [path for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten(range(count), spec))[0]]


def by_parameter(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[Path, Any]:
    """Each argument by the parameter that takes it, as Python binds them.

    Raises:
        TypeError: The forward cannot be called so.
    """
    bound = signature.bind(*args, **kwargs)
    found: dict[Path, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found.update({(name, pytree.SequenceKey(i)): item for i, item in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found.update({(name, pytree.MappingKey(key)): item for key, item in value.items()})
        else:
            found[name,] = value
    return found


def parameters_of(
    signature: inspect.Signature, count: int, keywords: Iterable[str]
) -> dict[tuple[int, Any], Path]:
    """The parameter that takes each positional argument, ``(0, place)``, and each ``(1, keyword)``."""
    places = [(0, place) for place in range(count)]
    taken = by_parameter(signature, places, {name: (1, name) for name in keywords})
    return {argument: path for path, argument in taken.items()}


def _likely_roots(
    positional: Sequence[str | None], keywords: Iterable[str]
) -> dict[tuple[int, Any], list[Path]]:
    """Every parameter that may take each argument, by the names that the program has for them."""
    keywords = list(keywords)
    roots: dict[tuple[int, Any], list[Path]] = {(1, name): [(name,)] for name in keywords}
    for place, name in enumerate(positional):
        if name is None:
            continue
        # Two parameters cannot have one name: a second one is an item of *rest.
        roots[0, place] = [] if name in keywords else [(name,)]
        found = re.fullmatch(r"(.+)_(\d+)", name)
        if found is None:
            continue
        rest, index = found[1], int(found[2])
        first = place - index  # *rest takes all that follows its first item, in order
        if first >= 0 and list(positional[first:]) == [f"{rest}_{i}" for i in range(len(positional) - first)]:
            roots[0, place].append((rest, pytree.SequenceKey(index)))
    return roots


class Sources:
    """The leaf that a guard's text for one stands for.

    Args:
        found: The leaves' places.
        signature: The forward's own, if it is known.
    """

    def __init__(self, found: Sequence[Place], signature: inspect.Signature | None) -> None:
        self.names = [place.name for place in found]
        self._leaves: dict[str, set[int]] = {}
        for index, place in enumerate(found):
            for path in place.paths:
                self._add(f"L[{path[0]!r}]{pytree.keystr(path[1:])}", index)
            # What a strict export writes, whatever the parameters: but one of them may be called so.
            if signature is None or "flat_args" not in signature.parameters:
                self._add(f"L['flat_args'][{index}]", index)

    def _add(self, text: str, index: int) -> None:
        try:
            normal = ast.unparse(ast.parse(text, mode="eval"))
        except SyntaxError:  # a key whose repr is no Python, and which no guard can hold either
            return
        self._leaves.setdefault(normal, set()).add(index)

    def find(self, node: ast.expr) -> frozenset[int]:
        """The leaves that an expression may stand for: none where it is none, one where it is clear."""
        return frozenset(self._leaves.get(ast.unparse(node), ()))


def declared_for(place: Place, dynamic_shapes: Any, found: Sequence[Place]) -> Any:
    """The user's dynamic_shapes for one leaf: follows its path as far as it goes."""
    if not place.paths:
        return None
    path = place.paths[0]
    entry = dynamic_shapes
    for depth, key in enumerate(path):
        siblings = dict.fromkeys(
            p.paths[0][depth] for p in found if p.paths and p.paths[0][:depth] == path[:depth]
        )
        entry = _entry(entry, key, list(siblings).index(key))
    return entry


def _entry(container: Any, key: Any, order: int) -> Any:
    """What a container has under a key, or in the order of the structure where it is a plain sequence."""
    name = next((getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)), key)
    if isinstance(container, Mapping):
        return container.get(name)
    if isinstance(key, pytree.GetAttrKey) and type(container) not in (list, tuple):
        return getattr(container, key.name, None)
    if isinstance(container, (list, tuple)):
        place = key.idx if isinstance(key, pytree.SequenceKey) else order
        return container[place] if place < len(container) else None
    return None
