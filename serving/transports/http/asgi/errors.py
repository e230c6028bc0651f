"""Errors over HTTP: every one of them, whoever finds it, is ``{"error": "one line"}``."""

from __future__ import annotations

from http import HTTPStatus

import orjson

from sensai_serve.errors import OverloadedError
from serving.transports.http.asgi.requests import Headers
from serving.v2.status import describe

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


def error_reply(error: Exception) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error."""
    status, message = describe(error)
    body = error_body(message)
    headers = json_headers(body)
    if isinstance(error, OverloadedError):
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    return status.http, headers, body


def http_error(status: HTTPStatus, more: Headers) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error of HTTP itself."""
    body = error_body(status.phrase)
    return status, [*json_headers(body), *more], body


def error_body(message: str) -> bytes:
    """The JSON of an error."""
    return orjson.dumps({"error": message})


def json_headers(body: bytes) -> Headers:
    """The headers of a JSON body."""
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
