"""What there is one of: it runs here, and a copy would stop, or count, what is not its own."""

from __future__ import annotations

from typing import Any

__all__ = ["NotCopied"]


class NotCopied:
    """Refuses `copy.copy`, `copy.deepcopy` and pickle in words."""

    __slots__ = ()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"this {type(self).__name__} cannot be copied or pickled: it is bound to this process and "
            "what it runs or watches there; make another"
        )
