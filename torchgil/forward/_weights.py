"""The tensors of a program, and whether the model still has them.

A forward shares its model's weights, and reads them as they are at each call. Memory given to one by
``p.data = ...`` is read from then on. A weight, or a module on the way to one, that is replaced by another
object cannot be read without a new graph: so the model is looked at before each call.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["Watch", "weight_of"]


def weight_of(program: ExportedProgram, name: str) -> torch.Tensor:
    """The parameter, buffer or lifted constant of that name.

    Raises:
        NotImplementedError: It is no tensor.
        ValueError: There is none.
    """
    for holder in (program.state_dict, program.constants):
        if (weight := holder.get(name)) is not None:
            if not isinstance(weight, torch.Tensor):
                raise NotImplementedError(
                    f"nogil: the constant {name!r} is no tensor but {type(weight).__name__}"
                )
            # a lifted constant that requires grad: ExportedProgram.module() detaches it too
            return weight.detach() if weight.requires_grad and holder is program.constants else weight
    raise ValueError(f"nogil: the exported program holds no tensor {name!r}")


class Watch:
    """The weights of a model, and the modules on the way to them, as they are now.

    Args:
        model: The model; it and what hangs on it is kept.
        weights: The program's tensors by their names in the model.
    """

    def __init__(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        entries = {
            (id(container), key): (container, key, container.get(key), path)
            for name in _all_names(model, weights)
            for container, key, path in _way(model, name)
        }
        self._containers = [entry[0] for entry in entries.values()]
        self._keys = [entry[1] for entry in entries.values()]
        self._values = [entry[2] for entry in entries.values()]
        self._paths = [entry[3] for entry in entries.values()]
        self._detached = [
            (value, weights[path])
            for value, path in zip(self._values, self._paths, strict=True)
            if path in weights and value is not weights[path] and isinstance(value, torch.Tensor)
        ]

    # GIL: held. Some 0.1 us for each weight and module: nothing here is a loop of Python's own. The two
    # functions are defaults because a forward may be called as the interpreter ends, when this module's names
    # are gone.
    def check(self, _get: Any = dict.get, _same: Any = operator.is_) -> None:
        """Do nothing, if all are still there.

        Raises:
            RuntimeError: One of them was replaced; the message names it.
        """
        now = map(_get, self._containers, self._keys)
        if not all(map(_same, now, self._values)):
            self._refuse()
        for value, detached in self._detached:
            if not torch._C._is_alias_of(value, detached):  # type: ignore[attr-defined]
                self._refuse()

    def _refuse(self) -> None:
        named: Iterable[tuple[Any, Any, Any, str]] = zip(
            self._containers, self._keys, self._values, self._paths, strict=True
        )
        path = next((p for c, key, value, p in named if c.get(key) is not value), "a constant")
        raise RuntimeError(
            f"nogil: {path!r} of the model was replaced since this forward was built, which does not see it "
            "(by an assignment, load_state_dict(assign=True), .to(), an adapter or a parametrization): build "
            "it again with torchgil.nogil"
        )


def _all_names(model: nn.Module, weights: Iterable[str]) -> list[str]:
    """The names, and all others that the model has for the same tensors.

    The graph reads a tied weight, or one of a module in two places, by one name only, and the model may have
    another tensor under the other name later.
    """
    ends = [end for name in weights for end in [*_way(model, name)][-1:]]
    read = {id(container.get(key)) for container, key, _ in ends}
    others = (
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for held in (vars(module)["_parameters"], vars(module)["_buffers"], vars(module))
        for name, value in held.items()
        if isinstance(value, torch.Tensor) and id(value) in read
    )
    return [*dict.fromkeys((*weights, *others))]


def _way(model: nn.Module, name: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Each entry of a dictionary that leads from the model to a weight, with its name in the model."""
    module: Any = model
    *modules, last = name.split(".")
    for depth, child in enumerate(modules):
        yield vars(module), "forward", ".".join([*modules[:depth], "forward"])
        held = vars(module).get("_modules")
        if not isinstance(held, dict) or child not in held:  # a name of export's own
            return
        yield held, child, ".".join(modules[: depth + 1])
        module = held[child]
        if module is None:
            return
    yield vars(module), "forward", ".".join([*modules, "forward"])
    for held in (vars(module).get("_parameters"), vars(module).get("_buffers"), vars(module)):
        if isinstance(held, dict) and last in held:
            yield held, last, name
            return
