"""Checks of arguments that are kept for later: a mistake shows at the call that made it."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from typing import Any

__all__ = ["flag", "function", "number", "seconds_or_none", "shown", "text", "whole"]


def shown(value: Any) -> str:
    """Its repr, or where it has none, such as an int of 5,000 digits, what it is."""
    try:
        return repr(value)
    except Exception:
        return f"something of type {type(value).__name__}"


def whole(
    what: str, value: Any, low: int, high: float = math.inf, *, wanted: str, kind: type[Exception] = TypeError
) -> int:
    """`value` as an int; numpy's integers are some, True and 2.0 are none.

    Args:
        what: Whose argument, and which, for the message: "Batcher: max_queue".
        value: What was given.
        low, high: The least and the greatest that is allowed.
        wanted: What is allowed, in words.
        kind: The error for what is no integer at all.

    Raises:
        ValueError: Out of range.
    """
    error: type[Exception] = ValueError
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
        if low <= found <= high:
            return found
    except TypeError:
        error = kind
    raise error(f"{what} must be {wanted}, got {shown(value)}")


def number(
    what: str, value: Any, low: float, high: float, *, wanted: str, kind: type[Exception] = TypeError
) -> float:
    """`value` as a float; any real number is one, numpy's too, but True, NaN and "1" are not. See `whole`."""
    error: type[Exception] = ValueError
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        error = kind
    else:
        try:
            found = float(value)
        except OverflowError:  # an int of hundreds of digits
            found = math.nan
        if low <= found <= high:  # not of NaN
            return found
    raise error(f"{what} must be {wanted}, got {shown(value)}")


def seconds_or_none(what: str, value: Any) -> float | None:
    """A limit of a wait: None, for none, or seconds, at least 0."""
    wanted = "a number of seconds, at least 0, or None"
    return None if value is None else number(what, value, 0, math.inf, wanted=wanted)


def flag(what: str, value: Any) -> bool:
    """`value` as a bool; 0 and 1 are, and other things are a mistake: "no" would count as True."""
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{what} must be True or False, got {shown(value)}")


def text(what: str, value: Any) -> str:
    """`value`, a str that can be written as UTF-8.

    Raises:
        TypeError: No str.
        ValueError: It has half of a surrogate pair in it.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} must be text that can be written as UTF-8, got {shown(value)}") from error
    return value


def function(what: str, value: Any) -> Any:
    """`value`, which can be called and has its result when it returns.

    Raises:
        TypeError: It cannot be called, or it is a coroutine function, which nobody would await.
    """
    if not callable(value):
        raise TypeError(f"{what} must be callable, got {type(value).__name__}")
    calls = (value, inspect.getattr_static(type(value), "__call__", None))  # of an object
    if any(inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call) for call in calls):
        raise TypeError(f"{what} must not be async, since nobody awaits it: give it a plain function")
    return value
