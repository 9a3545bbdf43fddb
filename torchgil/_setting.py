"""Context managers that decorate as well: around each call, each step of a generator or coroutine."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import sys
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import AbstractContextManager, _GeneratorContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar, cast

__all__ = ["Blocks", "Setting", "around"]

F = TypeVar("F", bound=Callable[..., Any])
Make = Callable[[], AbstractContextManager[Any]]


class Setting(AbstractContextManager[None]):
    """A setting that holds inside a ``with`` block, or in each call of the function that it decorates.

    Args:
        make: Makes a context manager that sets it and puts it back.
        name: What the user wrote, for messages.
    """

    __slots__ = ("_block", "_make", "_name")

    def __init__(self, make: Callable[[], _GeneratorContextManager[None]], name: str) -> None:
        self._make = make
        self._name = name
        self._block: _GeneratorContextManager[None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make, self._name)  # a copy has no open block

    def __enter__(self) -> None:
        if self._block is not None:
            raise RuntimeError(f"{self._name}: this block is open already; call it again for another")
        block = self._make()
        try:
            block.__enter__()
            self._block = block
        except BaseException:
            block.gen.close()  # Ctrl-C, just after
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block = self._block
        if block is None:
            return
        try:
            block.__exit__(kind, error, trace)
        finally:
            block.gen.close()  # Ctrl-C, just before
            self._block = None

    def __call__(self, function: F) -> F:
        """Decorates a function, generator function or coroutine function, whose steps it then is around.

        Raises:
            TypeError: It is none of these.
        """
        return cast("F", around(self._make, function, self._name))


class Blocks:
    """The open blocks of one setting, of one thread or under a lock.

    What the one that was entered last asks for holds, and what stood before the first comes back with the
    last, in whatever order they end. Each step can be done again: Ctrl-C may come amid it.

    Args:
        get: Reads the setting.
        put: Sets it, or raises.
        lock: Gives what is held around each change.
    """

    def __init__(
        self,
        get: Callable[[], Any],
        put: Callable[[Any], object],
        lock: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._get = get
        self._put = put
        self._lock = lock
        self._open: list[list[Any]] = []  # what stood before each, the one entered last at the end

    @contextmanager
    def block(self, value: Any, may_put_back: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """A block in which it is `value`; its end leaves the setting alone where that may not be put back.

        As the interpreter ends it does nothing: nobody is left to whom the setting is something, a thread
        that was parked may have the lock, and one that is started to put a number back would never run.
        """
        if sys.is_finalizing():
            yield
            return
        before: list[Any] = []
        try:
            with self._lock():
                before.append(self._get())
                self._open.append(before)
                self._put(value)
            yield
        finally:
            try:
                self._leave(before, may_put_back)
            except BaseException:
                try:
                    self._leave(before, may_put_back)
                finally:
                    self._open[:] = [other for other in self._open if other is not before]
                raise

    def _leave(self, before: list[Any], may_put_back: Callable[[], bool]) -> None:
        if sys.is_finalizing():
            return
        with self._lock():
            found = [i for i, other in enumerate(self._open) if other is before]
            if not found:
                return  # it was not entered, or has been left
            (i,) = found
            if i + 1 < len(self._open):
                self._open[i + 1][0] = before[0]  # the block that was entered after this one ends it, too
            elif may_put_back():
                self._put(before[0])
            del self._open[i]


def around(make: Make, function: Any, name: str) -> Any:
    """`function` with a block of `make` around each call, or around each step where it is a generator or
    coroutine function or returns a generator or coroutine.

    Raises:
        TypeError: It is an async generator function, a class, or cannot be called.
    """
    if isinstance(function, staticmethod | classmethod):
        return type(function)(around(make, function.__func__, name))
    if isinstance(function, functools.partialmethod):
        inner = around(make, function.func, name)
        return functools.partialmethod(inner, *function.args, **function.keywords)
    if isinstance(function, type):
        raise TypeError(f"{name}: {function.__qualname__} is a class; decorate its methods")
    if not callable(function):
        raise TypeError(
            f"{name}: a function is expected, got {type(function).__name__}"
            + ("; put the other decorator above this one" if hasattr(function, "__get__") else "")
        )
    code = _code(function)
    if inspect.isasyncgenfunction(code):
        raise TypeError(_refusal(name, code))
    wrapper: Any
    if inspect.iscoroutinefunction(code):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await _stepped(make, function(*args, **kwargs), name)

    elif inspect.isgeneratorfunction(code):

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return (yield from _steps(make, function(*args, **kwargs)))

        if code.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:
            wrapper = types.coroutine(wrapper)
    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with make():
                result = function(*args, **kwargs)
            return _stepped(make, result, name)

    # What an object has besides its call, as a module its weights, is not the function's.
    updated = functools.WRAPPER_UPDATES if inspect.isroutine(function) else ()
    return functools.wraps(function, updated=updated)(wrapper)


def _code(function: Any) -> Any:
    """The function that runs when `function`, a partial, a method or an object with __call__, is called."""
    while isinstance(function, functools.partial) or inspect.ismethod(function):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function if inspect.isroutine(function) else type(function).__call__


def _stepped(make: Make, result: Any, name: str) -> Any:
    """What a call returned; a generator or coroutine ran nothing yet and gets a block around each step."""
    kind = type(result)
    if not (hasattr(kind, "send") or hasattr(kind, "asend")):
        return result
    if isinstance(result, collections.abc.AsyncGenerator):
        raise TypeError(_refusal(name, result))
    if isinstance(result, collections.abc.Coroutine):
        return _coroutine(make, result)
    if isinstance(result, collections.abc.Generator):
        code = getattr(result, "gi_code", None)
        awaitable = code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE
        return _awaitable_steps(make, result) if awaitable else _steps(make, result)
    return result


def _refusal(name: str, of: Any) -> str:
    return (
        f"{name}: {of.__qualname__} is an async generator function; "
        f"put `with {name}:` around the ops inside it"
    )


def _steps(make: Make, inner: Any) -> Generator[Any, Any, Any]:
    """Runs a generator or coroutine, and leaves the block wherever that is suspended."""
    step = functools.partial(inner.send, None)
    while True:
        with make():
            try:
                item = step()
            except StopIteration as end:
                return end.value
        try:
            step = functools.partial(inner.send, (yield item))
        except GeneratorExit:
            with make():
                inner.close()
            raise
        except BaseException as error:
            step = functools.partial(inner.throw, error)


_awaitable_steps = types.coroutine(_steps)


async def _coroutine(make: Make, inner: Coroutine[Any, Any, Any]) -> Any:
    return await _awaitable_steps(make, inner)
