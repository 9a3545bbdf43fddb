"""From plain data, as JSON has it, to our own objects: each value is checked, and a wrong one named. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from torchgil._checks import number, shown
from torchgil._checks import whole as whole_number
from torchgil._garbage import Collections

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)

__all__ = ["Check", "flag", "made", "or_null", "seconds", "text", "texts", "whole"]

Check = Callable[[Any, str], Any]  # of a value, and of what it is called: as we have it, or a ValueError

_LONGEST_S = 2.0**33  # as nanoseconds it fits into 64 bits


def _a(kind: type, wanted: str) -> Check:
    def check(value: Any, what: str) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"{what} must be {wanted}, got {shown(value)}")
        return value

    return check


flag, text = _a(bool, "true or false"), _a(str, "a string")
_object, _array = _a(dict, "an object"), _a(list, "an array")


def whole(value: Any, what: str) -> int:
    return whole_number(what, value, -(2**63), 2**63 - 1, wanted="an integer of 64 bits", kind=ValueError)


def seconds(value: Any, what: str) -> float:
    return number(what, value, -_LONGEST_S, _LONGEST_S, wanted="a number of seconds", kind=ValueError)


def texts(value: Any, what: str) -> tuple[str, ...]:
    return tuple(text(each, f"{what}[{i}]") for i, each in enumerate(_array(value, what)))


def or_null(check: Check) -> Check:
    return lambda value, what: None if value is None else check(value, what)


def _seconds_by_name(value: Any, what: str) -> dict[str, float]:
    return {name: seconds(each, f"{what}[{name!r}]") for name, each in _object(value, what).items()}


def made(cls: type[D], value: Any, what: str) -> D:
    """An object of one of our classes, whose annotations say what each member has to be.

    What has a default may be missing: a version before it had no such member.
    """
    members = _object(value, what)
    values = {}
    for field in fields(cls):
        if field.name in members:
            values[field.name] = _ANNOTATED[str(field.type)](members[field.name], f"{what}.{field.name}")
        elif field.default is MISSING:
            raise ValueError(f"{what} has no {field.name}")
    return cls(**values)


_ANNOTATED: dict[str, Check] = {
    "float": seconds,
    "int": whole,
    "str": text,
    "bool": flag,
    "int | None": or_null(whole),
    "str | None": or_null(text),
    "dict[str, float]": _seconds_by_name,
    "Verdict": text,  # of an op, whose times say it again
    "Collections": lambda value, what: made(Collections, value, what),
}
