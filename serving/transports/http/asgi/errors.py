"""Error replies: every error over HTTP has the body ``{"error": "one line"}``."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import orjson

from sensai_serve.errors import NotLoadedError, OverloadedError
from serving.transports.http.asgi.types import Headers, HttpReply
from serving.v2.status import describe

RETRY_AFTER_S = 1
"""Seconds after which a server asks its clients to try again that is overloaded, or loads their model."""
RETRY_LATER: Headers = [(b"retry-after", str(RETRY_AFTER_S).encode())]
"""Headers of a reply that asks for that."""

STOPPING = "the server is stopping"
"""What clients are told whose requests outlast the time that they have then."""

ERROR_RESPONSE = {
    "description": "What was wrong and what was expected",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}
"""How the OpenAPI document describes an error."""


def error_reply(error: Exception) -> HttpReply:
    """The reply that tells a client of `error`."""
    status, message = describe(error)
    body = error_body(message)
    headers = json_headers(body)
    if isinstance(error, (OverloadedError, NotLoadedError)):
        headers += RETRY_LATER
    return status.http, headers, body


def no_such_path() -> HttpReply:
    """The reply where a path has nothing."""
    body = error_body("no such path, expected one of those that GET /docs lists")
    return HTTPStatus.NOT_FOUND, json_headers(body), body


def not_allowed(method: str, methods: Sequence[str]) -> HttpReply:
    """The reply where a path is not for `method`, but for `methods`."""
    allowed = ", ".join(methods)
    body = error_body(f"{method} is not allowed for this path, expected {allowed}")
    return HTTPStatus.METHOD_NOT_ALLOWED, [*json_headers(body), (b"allow", allowed.encode())], body


def error_body(message: str) -> bytes:
    """The JSON body of an error."""
    return orjson.dumps({"error": message})


def json_headers(body: bytes) -> Headers:
    """The headers of a JSON body."""
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
