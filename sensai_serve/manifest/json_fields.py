"""Reads fields of JSON objects strictly: each of one type, and errors that say where and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sensai_serve.errors import BundleError

MAX_WHOLE = 2**53
"""Largest whole number that is read, which every JSON parser represents exactly."""
MAX_NUMBER = 1e30
"""Largest magnitude of other numbers."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")
_MISSING: Any = object()


def get(
    raw: Mapping[str, Any], key: str, convert: Callable[[Any], _T], default: Any = _MISSING, *, where: str = ""
) -> _T:
    """Read one field of an object.

    Args:
        raw: the object.
        key: the field's name.
        convert: checks and converts the value; raises TypeError with what it expects.
        default: the value where the field is not there; without it the field is required.
        where: what errors call the object, with a dot at the end.

    Raises:
        BundleError: the field is missing, or of another type.
    """
    if key not in raw:
        if default is _MISSING:
            raise BundleError(f"{where}{key} is missing")
        return convert(default)
    try:
        return convert(raw[key])
    except TypeError as error:
        raise BundleError(f"{where}{key} is {shown(raw[key])}, expected {error}") from None


def string(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def integer(value: Any) -> int:
    """A whole number of at most `MAX_WHOLE`."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_WHOLE:
        raise TypeError(f"a whole number of at most {MAX_WHOLE}")
    return value


def number(value: Any) -> float:
    """A finite number of at most `MAX_NUMBER`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_NUMBER:  # NaN is not
        raise TypeError(f"a number of at most {MAX_NUMBER:g}")
    return float(value)


def object_(value: Any) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise TypeError("an object")
    return value


def object_of(item: Callable[[Any], _T]) -> Callable[[Any], dict[str, _T]]:
    """A JSON object whose values are all read by `item`."""
    return lambda value: {key: item(held) for key, held in object_(value).items()}


def list_of(item: Callable[[Any], _T]) -> Callable[[Any], tuple[_T, ...]]:
    """A list whose items are all read by `item`."""

    def convert(value: Any) -> tuple[_T, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError("a list")
        return tuple(item(v) for v in value)

    return convert


def optional(item: Callable[[Any], _T]) -> Callable[[Any], _T | None]:
    """null, or what `item` reads."""
    return lambda value: None if value is None else item(value)


def sha256(value: Any) -> str:
    """A SHA-256 in hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise TypeError("a SHA-256 in 64 lower-case hex digits")
    return value


def refuse_unknown(raw: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise BundleError for a key that this version does not know: it may mean what it must not be served without."""
    if unknown := sorted(set(raw) - set(known)):
        raise BundleError(f"{where}{unknown[0][:60]} is unknown, expected {', '.join(known)}")


def shown(value: Any) -> str:
    """A value for an error message; a whole number of thousands of digits cannot even be written out."""
    return repr(str(value)[:60]) if not isinstance(value, int) or abs(value) < 10**60 else "a number of over 60 digits"
