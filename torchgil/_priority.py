"""gil_priority(): a thread that gets the GIL back at once, not after the switch interval."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

from torchgil._gil_half import C
from torchgil._setting import around

__all__ = ["GilPriority", "gil_priority", "own_releases_are_seen", "priority_unavailable"]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def gil_priority() -> GilPriority: ...
@overload
def gil_priority(function: F, /) -> F: ...
def gil_priority(function: F | None = None, /) -> GilPriority | F:
    """The calling thread gets the GIL back at once inside the block.

    A thread that comes back from a release of the GIL, as after each eager op, and finds the GIL
    taken waits one switch interval, 5 ms, before the interpreter asks the holder to give way. With
    priority it asks at once. The holder gives way as it would have 5 ms later: between two
    bytecodes, never within a call that holds the GIL.

    It is for threads that are mostly inside ops: a forward, a training step, beside threads that are
    busy in Python. The others pay, for each request costs them a switch; but no more is taken from
    them than is left to them: where threads with priority have kept the GIL for longer than they let
    others have it they wait for the difference before they ask again, and once it is a turn the
    others ask: 0.1 ms, or 1 ms where all releases are short. Threads with priority wait for each
    other's next release, 200 us at most.

    Only the calling thread is changed. Blocks may be nested. As a decorator it is around
    each call of a function, and around each step of a generator or coroutine, so that it never
    stays on while another task of the event loop runs. In a ``with`` statement inside a generator
    it stays on while the generator is suspended, as ``torch.no_grad()`` does.

    The first block of the process redirects calls inside the interpreter and loaded objects, some
    milliseconds; they stay redirected, and cost threads without priority some nanoseconds per
    release. After that a block costs less than a microsecond.

    Args:
        function: What to decorate, so that ``@torchgil.gil_priority`` needs no parentheses.

    Returns:
        A context manager that is a decorator as well, and may be used again; or the decorated function.

    Raises:
        TypeError: function is an async generator function, a class, or cannot be called.

    Warns:
        RuntimeWarning: Once, where this platform or Python does not allow it; nothing is changed then.
            ``torchgil doctor`` says so, too.

    >>> import torch, torchgil
    >>> with torchgil.gil_priority():
    ...     torch.ones(2) + torch.ones(2)
    tensor([2., 2.])
    >>> @torchgil.gil_priority
    ... def step(x):
    ...     return x.relu()
    >>> step(torch.ones(2))
    tensor([1., 1.])
    """
    return GilPriority() if function is None else GilPriority()(function)


class GilPriority(C.PriorityBlocks):
    """What :func:`gil_priority` returns."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a copy has no open blocks

    def __enter__(self) -> None:
        _warn_once_if_unavailable()
        _enter(self)

    def __call__(self, function: F) -> F:
        """Decorates a function, generator function or coroutine function.

        Raises:
            TypeError: It is an async generator function, a class, or cannot be called.
        """
        return cast("F", around(GilPriority, function, "torchgil.gil_priority()"))


def priority_unavailable() -> str | None:
    """Why :func:`gil_priority` can do nothing here; None where it works."""
    return C.priority_unavailable()


def own_releases_are_seen() -> bool:
    """Whether the interpreter's own releases, as that of ``time.sleep``, are known by its entry points.

    Where it calls these within itself, as one that is linked statically does, a thread that comes back from
    such a release is known by its wait for the GIL alone, and does not differ from one that was forced to
    give way.
    """
    with gil_priority():
        return C.priority_sees_own_releases()


_enter = C.PriorityBlocks.__enter__


@functools.cache
def _warn_once_if_unavailable() -> None:
    why_not = priority_unavailable()
    if why_not:
        warnings.warn(f"gil_priority: {why_not}; nothing is changed", RuntimeWarning, stacklevel=3)
