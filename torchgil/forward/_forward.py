"""The type of what `nogil` and `load_package` return."""

from __future__ import annotations

import abc
from typing import Any, Literal

__all__ = ["Forward"]


class Forward(abc.ABC):
    """A model's forward under one single release of the GIL: what :func:`torchgil.nogil` and
    :func:`torchgil.load_package` return.

    Call it as the model, from any number of threads at the same time. It has these attributes, and further
    ones for its backend: ``exported_program`` and ``python_ops`` (operators that take the GIL back) where
    that is ``"graph"``; ``path``, ``metadata``, ``runners`` and ``checked`` where it is ``"inductor"``.

    Attributes:
        backend: ``"graph"``, which runs the exported operators one after the other, or ``"inductor"``, a
            compiled package.

    Example:
        >>> import torch, torchgil
        >>> forward: torchgil.Forward = torchgil.nogil(torch.nn.ReLU().eval(), (torch.ones(2),))
        >>> forward.backend, forward(torch.tensor([-1.0, 1.0]))
        ('graph', tensor([0., 1.]))
    """

    backend: Literal["graph", "inductor"]

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's results for these arguments."""
