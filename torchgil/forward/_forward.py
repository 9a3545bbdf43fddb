"""The type of what `nogil` and `load_package` return."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torchgil.forward._session import Session

__all__ = ["Forward"]


class Forward(abc.ABC):
    """A model's forward under one single release of the GIL: what :func:`torchgil.nogil` and
    :func:`torchgil.load_package` return.

    Call it as the model, from any number of threads at the same time; where the model writes to its buffers,
    call the sessions that it makes. It has these attributes, and further ones for its backend:
    ``exported_program``, ``state_names`` and ``python_ops`` (operators that take the GIL back) where that is
    ``"graph"``; ``path``, ``metadata``, ``runners``, ``checked`` and ``frozen`` where it is ``"inductor"``.

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
        """The model's results for these arguments.

        Raises:
            RuntimeError: The model has state, which its sessions have copies of; the message says how to make
                one. Or a weight was replaced.
            TypeError: The arguments are of another kind or number than they were exported with.
            ValueError: They have another dtype, shape or device, or constants are others.
        """

    @abc.abstractmethod
    def session(self) -> Session:
        """A session: the model with copies of its own of what it writes to.

        It starts with the values that the model had when :func:`torchgil.nogil` was called. It takes the
        memory of its `state`, and the time to copy it. A model that writes to nothing has sessions, too.

        Returns:
            A new session, independent of all others.

        Raises:
            NotImplementedError: This is a compiled package, which has none.
        """
