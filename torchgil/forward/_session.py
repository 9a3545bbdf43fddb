"""Calls of a model that writes to its buffers: each session has its own copies of what is written."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from torchgil._checks import shown
from torchgil._torch_half import C
from torchgil.forward._state import described

if TYPE_CHECKING:
    from types import TracebackType

    from torchgil.forward._nogil import GraphForward

__all__ = ["Session"]


class Session:
    """One user's calls of a model with state, such as a decoder with its key-value cache.

    What :func:`torchgil.nogil` returns has a method ``session()`` that makes one. It starts with the values
    that the model had when ``nogil`` was called. It has copies of the tensors that the model writes to, and
    of those alone: weights are shared with all other sessions. Calls take the model's arguments and return
    its results, with one release of the GIL each.

    Any number of sessions may be called at the same time, from any threads. One session takes one call at a
    time, of the model or of its own methods: a second one raises a RuntimeError that names both threads. It
    never waits.

    A result that is a buffer of the model, or a view of one, is one of the session's: the next call may
    change it. A call that fails leaves the state as its operators left it until then; `copy` before, or
    `reset`, is the way back. ``copy.copy`` does what `copy` does; ``copy.deepcopy`` and ``pickle`` take the
    model with them, once for all sessions that are copied together. In the child of a fork a session goes on
    from where it was; one that another thread was calling at that moment has to be `reset`.

    Args:
        forward: What :func:`torchgil.nogil` returned; call its ``session()`` instead.
        source: The session whose values the new one starts with; None: those of the model.

    Example:
        >>> import torch, torchgil
        >>> class Total(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("total", torch.zeros(2))
        ...     def forward(self, x):
        ...         self.total.add_(x)
        ...         return self.total * 1
        >>> fast = torchgil.nogil(Total(), (torch.ones(2),))
        >>> a, b = fast.session(), fast.session()
        >>> a(torch.ones(2)), a(torch.ones(2)), b(torch.ones(2))
        (tensor([1., 1.]), tensor([2., 2.]), tensor([1., 1.]))
        >>> a.copy().state
        {'total': tensor([2., 2.])}
    """

    __slots__ = ("__weakref__", "_forward", "_native", "_run")

    def __init__(self, forward: GraphForward, source: Session | None = None) -> None:
        self._forward = forward
        self._native: Any = C.Session(forward._graph, None if source is None else source._native)
        self._run = self._native.run
        _sessions.add(self)

    # GIL: held on entry, released once while the graph runs.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self._forward
        if forward._watch is not None:
            forward._watch.check()
        return forward._unflatten(self._run(forward._flatten(args, kwargs)))

    def copy(self) -> Session:
        """A session that goes on from the same values, on its own: the prefix of a conversation, branched.

        Returns:
            The new session.

        Raises:
            RuntimeError: This one is closed, or another thread is in a call of it.
        """
        return Session(self._forward, self)

    def reset(self) -> None:
        """Put the values back that the model had when :func:`torchgil.nogil` was called.

        Raises:
            RuntimeError: The session is closed, or another thread is in a call of it.
        """
        self._native.reset()

    def close(self) -> None:
        """Give the memory of the state back; the last reference to the session does so, too.

        A session that is closed can only be closed again.

        Raises:
            RuntimeError: Another thread is in a call of it.
        """
        self._native.close()

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that the model writes to, by their names in the model, as `state_dict()` has them.

        They are the session's own, not copies: a call changes them, and they must be left alone during one.
        ``session.state[name] = tensor`` copies values into one, and ``session.state = tensors`` into all. A
        tensor must have the shape and the dtype of the one it is for, and may be on any device, or be the
        session's own: two may change places. A constant
        that :func:`torch.export.export` lifted out of the model has the name that it gave it.

        Raises:
            KeyError: The session has no tensor of that name, or not of all of them when it is assigned.
            RuntimeError: The session is closed, or another thread is in a call of it.
            TypeError: A value is no tensor, or has no memory (it is sparse, fake, on the device meta).
            ValueError: It has another shape or dtype. Where a value is refused, nothing is written.
        """
        return _State(self._native, zip(self._forward.state_names, self._native.tensors(), strict=True))

    @state.setter
    def state(self, values: Mapping[str, torch.Tensor]) -> None:
        state = self.state
        if missing := [name for name in state if name not in values]:
            raise KeyError(f"nogil: the session's state has {missing[0]!r} as well, which is missing")
        state.update(values)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<session of {self._forward!r}>"

    def __copy__(self) -> Session:
        return self.copy()

    # Of deepcopy as well: the forward and the blocks are copied as they would be pickled.
    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._forward, self._native.save())


class _State(dict[str, torch.Tensor]):
    """A session's tensors; to assign to one is to copy values into it, and none comes or goes."""

    def __init__(self, native: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().__init__(tensors)
        self._native = native

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        self.update({name: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        places = {name: place for place, name in enumerate(self)}
        values: dict[str, Any] = dict(*args, **kwargs)
        for name, value in values.items():
            if name not in places:
                raise KeyError(f"nogil: the session has no state {name!r}, only {', '.join(map(repr, self))}")
            _check(name, self[name], value)
        self._native.write([(places[name], value) for name, value in values.items()])

    def __ior__(self, values: Any) -> _State:  # type: ignore[override,misc]
        self.update(values)
        return self

    def _fixed(self, *_: Any) -> NoReturn:
        raise TypeError(
            "nogil: which tensors a session's state has is the model's; dict(session.state) is free"
        )

    __delitem__ = clear = pop = popitem = setdefault = _fixed

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _check(name: str, own: torch.Tensor, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"nogil: the state {name!r} must be a tensor, got {shown(value)}")
    if (value.dtype, value.shape) != (own.dtype, own.shape):
        raise ValueError(
            f"nogil: the state {name!r} is {described(own)}, and what was assigned is {described(value)}"
        )


def _restored(forward: GraphForward, blocks: list[torch.Tensor]) -> Session:
    session = Session(forward)
    session._native.load(blocks)
    return session


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session._native.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
