"""A guard is looked up on the argument that it speaks of, whatever the arguments are called."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import torchgil

# No shrinking: an example takes an export, and a failure would be shrunk for minutes. It is shown as found.
BOUNDED = settings(
    deadline=None, max_examples=40, phases=(Phase.explicit, Phase.reuse, Phase.generate), derandomize=True
)


@dataclass
class Fields:
    """A dataclass that pytree knows."""

    x: Any
    x_1: Any


Named = namedtuple("Named", ["x_0", "count"])
pytree.register_dataclass(Fields)

NAMES = ["x", "x_0", "x_1", "x_0_1", "_", "__", "x_", "flat_args", "args", "kwargs", "L", "size"]
KEYS = ["a", "x_1", "it's", "x'][0]", "L['x']", "size()[0]", 1, 0]
SIZES = st.integers(2, 6)
LEAVES = SIZES | SIZES.map(lambda n: -n)  # of a tensor; less than nothing: an int that changes
STRUCTURES: Any = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.lists(inner, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(KEYS), inner, min_size=1, max_size=2),
        st.builds(Fields, inner, inner),
        st.builds(Named, inner, inner),
    ),
    max_leaves=3,
)


@st.composite
def calls(draw: Any) -> tuple[list[tuple[str, Any]], tuple[str, list[Any]] | None, list[tuple[str, Any]]]:
    """Parameters by position, perhaps `*rest`, and parameters by keyword: names, and structures of sizes."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    cut = draw(st.integers(0, len(names)))
    structures = [draw(STRUCTURES) for _ in names]
    pairs = list(zip(names, structures, strict=True))
    rest = None
    if draw(st.booleans()) and cut < len(names):
        rest = (names[cut], draw(st.lists(STRUCTURES, min_size=1, max_size=3)))
        return pairs[:cut], rest, pairs[cut + 1 :]
    return pairs[:cut], rest, pairs[cut:]


def module(positional: list[str], rest: str | None, keywords: list[str]) -> nn.Module:
    """A model whose results and branches depend on each leaf by its own place."""
    parameters = [*positional, *([f"*{rest}"] if rest else ["*"] * bool(keywords)), *keywords]
    given = ", ".join([*positional, *([f"*{rest}"] if rest else [])])
    by_name = ", ".join(f"{name!r}: {name}" for name in keywords)
    scope: dict[str, Any] = {"body": body}
    header = f"def forward(self, {', '.join(parameters)})"
    exec(f"{header}: return body(({given}{',' * bool(given)}), {{{by_name}}})", scope)
    return type("Drawn", (nn.Module,), {"forward": scope["forward"]})()


def body(args: Any, kwargs: Any) -> Tensor:
    values = []
    for place, leaf in enumerate(pytree.tree_leaves((args, kwargs))):
        size = leaf.shape[0] if isinstance(leaf, Tensor) else leaf
        value = leaf.sum() if isinstance(leaf, Tensor) else torch.tensor(1.0) * leaf
        values.append(value * (place + 2 if size % 2 == 0 else -place - 3))
    return torch.stack(values)


def filled(structure: Any, more: Any = 0) -> Any:
    """Tensors and ints of the sizes, each larger by the next of `more`."""
    added = iter(more if more else [0] * 99)

    def leaf(size: int) -> Any:
        return torch.ones(size + next(added)) if size > 0 else -size + next(added)

    return pytree.tree_map(leaf, structure)


def dynamic(structure: Any) -> Any:
    """What torch.export takes for such a structure: a dataclass as the list of its fields."""
    if isinstance(structure, int):
        return {0: Dim.AUTO} if structure > 0 else Dim.AUTO
    if isinstance(structure, Fields):
        return [dynamic(structure.x), dynamic(structure.x_1)]
    if isinstance(structure, Named):
        return Named(*map(dynamic, structure))
    if isinstance(structure, dict):
        return {key: dynamic(value) for key, value in structure.items()}
    return type(structure)(map(dynamic, structure))


PARTS = tuple[list[tuple[str, Any]], tuple[str, list[Any]] | None, list[tuple[str, Any]]]
EXPORTED: list[int] = []
ISSUE: PARTS = ([("x", (3, 4)), ("x_1", 6)], None, [])


@settings(BOUNDED)
@given(
    parts=calls(),
    more=st.lists(st.sampled_from([0, 2, 2, 4, 1]), min_size=40, max_size=40),
    how=st.integers(0, 2),
)
@example(parts=ISSUE, more=[0, 1, 0], how=0)
@example(parts=ISSUE, more=[0, 1, 0], how=1)
@example(parts=ISSUE, more=[0, 1, 0], how=2)
@example(parts=([("y", 4), ("flat_args", [3, 2])], None, []), more=[1, 0, 0], how=0)
@example(parts=([], ("x", [3, 4]), [("x_1", 5)]), more=[0, 1, 0], how=0)
@example(parts=([], ("x", [3, 4]), [("x_1", 5)]), more=[0, 0, 1], how=1)
@example(parts=([], None, [("x_0", (2, 3)), ("x", [5])]), more=[0, 1, 0], how=0)
def test_other_sizes_give_what_eager_gives_or_are_refused(parts: PARTS, more: list[int], how: int) -> None:
    positional, rest, keywords = parts
    if not positional and not rest and not keywords:
        return
    model = module([n for n, _ in positional], rest and rest[0], [n for n, _ in keywords])
    structure = ([s for _, s in positional] + (rest[1] if rest else []), dict(keywords))
    shapes = {name: dynamic(s) for name, s in positional}
    if rest:
        shapes[rest[0]] = tuple(map(dynamic, rest[1]))
    shapes.update((name, dynamic(s)) for name, s in keywords)
    args, kwargs = filled(structure)
    try:
        program = torch.export.export(model, tuple(args), kwargs, dynamic_shapes=shapes, strict=how == 2)
    except Exception:  # not all names and structures can be exported, and fewer so strictly
        return
    EXPORTED.append(how)
    try:
        if how == 0:
            forward = torchgil.nogil(model, tuple(args), kwargs, dynamic_shapes=shapes)
        else:  # no signature is known, and a strict export names arguments by their number
            forward = torchgil.nogil(program)
    except NotImplementedError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "may mean each of" in refusal
        assert how != 0, "of a module all is known"
        return
    for added in ([0] * len(more), [2] * len(more), more):
        args, kwargs = filled(structure, added)
        count = len(pytree.tree_leaves((args, kwargs)))
        try:
            got = forward(*args, **kwargs)
        except (ValueError, RuntimeError) as error:
            assert any(n % 2 for n in added[:count]), error  # noqa: PT017  (it need not raise)
            continue
        want = model(*args, **kwargs)
        assert torch.equal(got, want), f"{got} for {want}"


def test_most_of_what_was_drawn_was_exported() -> None:
    """The control of the test above: it looked at something."""
    assert len(EXPORTED) >= 30
    assert set(EXPORTED) == {0, 1, 2}
