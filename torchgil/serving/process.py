"""Notice a fork: threads do not survive it, so what rests on threads must not be used in the child."""

from __future__ import annotations

import os

__all__ = ["HomeProcess"]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class HomeProcess:
    """The process an object was made in.

    A counter bumped in every forked child is compared, because asking for the process id costs a system call
    per request.

    Example:
        >>> HomeProcess("pool").left
        False
    """

    __slots__ = ("_forks_at_birth", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._forks_at_birth = _forks

    @property
    def left(self) -> bool:
        """True in a child forked after this object was made."""
        return _forks != self._forks_at_birth

    def check(self) -> None:
        """Return in the process the object was made in.

        Raises:
            RuntimeError: In a forked child, which has none of the parent's threads.
        """
        if _forks != self._forks_at_birth:
            raise RuntimeError(
                f"this {self._what} was made before os.fork() and its threads stayed in the parent process; "
                f"make a new {self._what} in the child"
            )
