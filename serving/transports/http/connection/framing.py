"""Rules of RFC 9112 for a request's head that the HTTP parser does not hold, and of RFC 6455 for a handshake."""

from __future__ import annotations

import base64
import binascii
import re
from http import HTTPStatus
from typing import NamedTuple

from serving.transports.http.asgi.types import Headers

_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_ANYWAY = (b"upgrade", b"http2-settings")


class Fault(NamedTuple):
    """Why a request is refused."""

    status: HTTPStatus
    message: str
    headers: Headers = []  # noqa: RUF012 - never changed


def head_fault(version: str, method: bytes, target: bytes, headers: Headers) -> Fault | None:
    """What is wrong with a request's head, None where nothing is; where the request ends would be in doubt.

    Args:
        version: the HTTP version of the request line, such as ``1.1``.
        method: the request's method.
        target: the request's target.
        headers: names in lower case, and values.
    """
    bad = HTTPStatus.BAD_REQUEST
    if version not in ("1.0", "1.1"):
        return Fault(bad, f"the request says HTTP/{version}, expected HTTP/1.1 or 1.0")
    if method == b"CONNECT":
        return Fault(HTTPStatus.METHOD_NOT_ALLOWED, "CONNECT is not supported: this server is no proxy")
    hosts = [value.strip() for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return Fault(bad, f"the request has {len(hosts) or 'no'} Host headers, expected one")
    if hosts and not _AUTHORITY.fullmatch(hosts[0]):
        return Fault(bad, "the Host header is not valid, expected HOST or HOST:PORT")
    if not target.startswith(b"/") and target != b"*" and not _names(target, hosts):
        return Fault(bad, "the request's target is not valid, expected a path, or a URL of the host in Host")
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        return Fault(bad, "Transfer-Encoding needs HTTP/1.1")
    if codings and codings != [b"chunked"]:
        return Fault(HTTPStatus.NOT_IMPLEMENTED, "Transfer-Encoding is not supported, expected chunked alone")
    return None


def _names(target: bytes, hosts: list[bytes]) -> bool:
    """Whether the target is a URL of the host that the Host header names."""
    scheme, found, rest = target.partition(b"://")
    authority = re.split(rb"[/?#]", rest, maxsplit=1)[0]
    return (
        bool(found) and scheme.lower() in (b"http", b"https") and (not hosts or authority.lower() == hosts[0].lower())
    )


def content_length(headers: Headers) -> int:
    """The length of the body that a head announces; 0 where it announces none."""
    for name, value in headers:
        if name == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


def asks_for_websocket(headers: Headers) -> bool:
    """Whether a request that asks for another protocol asks for a WebSocket, and for nothing else."""
    return [value.strip().lower() for name, value in headers if name == b"upgrade"] == [b"websocket"]


def handshake_fault(version: str, method: bytes, headers: Headers) -> Fault | None:
    """What is wrong with a WebSocket handshake, None where nothing is."""
    given: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        given.setdefault(name, []).append(value.strip())
    if method != b"GET" or version != "1.1":
        return Fault(HTTPStatus.BAD_REQUEST, "a WebSocket handshake is a GET over HTTP/1.1")
    if b"transfer-encoding" in given or given.get(b"content-length", [b"0"]) != [b"0"]:
        return Fault(HTTPStatus.BAD_REQUEST, "a WebSocket handshake has no body")
    if given.get(b"sec-websocket-version") != [b"13"]:
        message = "the WebSocket's version is not supported, expected Sec-WebSocket-Version: 13"
        return Fault(HTTPStatus.UPGRADE_REQUIRED, message, [(b"sec-websocket-version", b"13")])
    keys = given.get(b"sec-websocket-key", [])
    if len(keys) != 1 or not _is_key(keys[0]):
        return Fault(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is missing or not valid, expected 16 bytes in base64")
    return None


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def plain_head(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """The head of the same request without its wish for another protocol, which a server may ignore (RFC 9110, 7.8)."""
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    lines += [b"%s: %s" % header for header in headers if header[0] not in _ANYWAY]
    return b"\r\n".join([*lines, b"", b""])
