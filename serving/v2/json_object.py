"""Parses the JSON objects that clients send."""

from __future__ import annotations

from typing import Any

import orjson

from sensai_serve.errors import RequestError
from serving.v2.tensors import shown

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_object(body: bytes | memoryview | str, expected: str = "a JSON object") -> dict[str, Any]:
    """Parse a JSON object in UTF-8, with or without a byte order mark; the error names what is `expected`.

    Raises:
        RequestError: malformed JSON, or another value than an object.
    """
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
