"""Whether a model still has the weights that a frozen forward was compiled with.

Such a forward has their values in constants of its own, often in another form: it sees no change of the
model's. So each call looks at the model, as long as there is one. The forward does not keep it, because those
who freeze a model may want to be rid of its weights.
"""

from __future__ import annotations

import operator
import weakref
from typing import TYPE_CHECKING, Any

import torch

from torchgil.forward._weights import Watch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FrozenWatch"]


class FrozenWatch:
    """The weights of a model, and their values, as they are now.

    Values are compared by where they are and by how often torch counted a write to them. It counts none to
    what was made under inference mode, none that goes through ``weight.data``, and none of batch norm's to
    its statistics.

    Args:
        model: The model; it is not kept.
        weights: The program's tensors by their names in the model.
    """

    def __init__(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        self._values: _Values | None = _Values(model, weights)
        self._model = weakref.ref(model, self._forget)

    def _forget(self, _: object) -> None:
        self._values = None

    # GIL: held.
    def check(self) -> None:
        """Do nothing, if all are as they were, or the model is gone.

        Raises:
            RuntimeError: One of them was replaced, or its values changed; the message names it.
        """
        if (values := self._values) is not None:
            values.check()


class _Values:
    """What is compared: tensors and the dictionaries of modules, but never the model itself."""

    def __init__(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        self._watch = Watch(model, weights)
        counted = {name: weight for name, weight in weights.items() if not weight.is_inference()}
        self._weights, self._counted = list(weights.values()), list(counted.values())
        self._names = [*weights, *counted]
        self._before = self._now()

    def check(self) -> None:
        self._watch.check()
        if (now := self._now()) != self._before:
            name = next(n for n, a, b in zip(self._names, now, self._before, strict=True) if a != b)
            raise RuntimeError(
                f"nogil: the values of {name!r} of the model changed since this forward was built with "
                "freeze=True, which does not see them (by load_state_dict, an optimiser's step, an "
                "assignment to .data, or in place): build it again with torchgil.nogil"
            )

    # Some 0.1 us for each weight. The two functions are defaults as in `Watch.check`.
    def _now(
        self, _place: Any = torch.Tensor.data_ptr, _writes: Any = operator.attrgetter("_version")
    ) -> list[int]:
        return [*map(_place, self._weights), *map(_writes, self._counted)]
