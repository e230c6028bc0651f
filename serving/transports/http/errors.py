"""From our errors to HTTP: one table. Every error, whoever finds it, is answered ``{"error": "one line"}``."""

from __future__ import annotations

import logging

import orjson

from sensai_serve.errors import (
    ControlOffError,
    InputError,
    NotReadyError,
    OverloadedError,
    SensaiError,
    TooLargeError,
    UncoveredError,
    UnknownModelError,
    UnknownRegionError,
    UnsupportedError,
)
from serving.transports.http.asgi import Headers

# The first that fits: a subclass stands before its base.
STATUS: tuple[tuple[type[SensaiError], int], ...] = (
    (UnknownModelError, 404),
    (UnknownRegionError, 404),
    (UnsupportedError, 501),
    (TooLargeError, 413),
    (InputError, 400),
    (UncoveredError, 503),
    (OverloadedError, 503),
    (NotReadyError, 503),
    (ControlOffError, 503),
)
INTERNAL = "internal error"
RETRY_AFTER_S = 1

ERROR_RESPONSE = {
    "description": "What was wrong and what was expected",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}
"""For the OpenAPI document."""

_log = logging.getLogger("sensai.http")


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for what nobody raises on purpose at a client."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def error_reply(error: Exception) -> tuple[int, Headers, bytes]:
    """Status, headers and body. What is unexpected goes to the log and is not described: its text may hold paths."""
    status = status_of(error)
    if status == 500:
        _log.error("a request failed", exc_info=error)
    body = error_body(INTERNAL if status == 500 else str(error))
    headers = json_headers(body)
    if isinstance(error, OverloadedError):
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    return status, headers, body


def error_body(message: str) -> bytes:
    """The JSON of an error."""
    return orjson.dumps({"error": message})


def json_headers(body: bytes) -> Headers:
    """The headers of a JSON body."""
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
