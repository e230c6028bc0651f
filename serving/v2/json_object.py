"""Parses the JSON objects that clients send, after counting the values that parsing would make."""

from __future__ import annotations

from typing import Any

import orjson

from sensai_serve.errors import RequestError
from serving.v2.tensors import shown

MAX_MEMBERS = 4096
"""Values that an object may hold beside the numbers of a tensor."""
UNCOUNTED_BYTES = 16 * 1024
"""Length in bytes, beside one for each number that may be there, up to which values are not counted: every value takes
a byte, so that so short a text holds few more than it may."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_object(
    body: bytes | memoryview | str, expected: str = "a JSON object", *, numbers: int = 0
) -> dict[str, Any]:
    """Parse a JSON object in UTF-8, with or without a byte order mark.

    Every value becomes a Python object of some fifty bytes, and nothing else runs meanwhile, so a text of more values
    than the request can need is refused before it is parsed.

    Args:
        body: the text.
        expected: what the error calls a right one.
        numbers: the most numbers that a tensor in it may have.

    Raises:
        RequestError: too many values, malformed JSON, or another value than an object.
    """
    if len(body) > UNCOUNTED_BYTES + numbers:
        _count(body, numbers)
    if isinstance(body, str):
        body = body.removeprefix("\ufeff")
    elif body[:3] == _BYTE_ORDER_MARK:
        body = body[3:]
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(f"the request is {shown(content)}, expected {expected}")
    return content


def _count(body: bytes | memoryview | str, numbers: int) -> None:
    text = body.encode() if isinstance(body, str) else bytes(body)  # bytes as they are, without a copy
    values, lists = text.count(b","), text.count(b"[") + text.count(b"{")
    if values > numbers + MAX_MEMBERS or lists > 2 * numbers + MAX_MEMBERS:  # numbers may be nested one by one
        raise RequestError(
            f"the request is JSON of {max(values, lists)} values, expected at most {numbers + MAX_MEMBERS}"
            + (f": an input of {numbers} numbers, and what describes it" if numbers else "")
        )
