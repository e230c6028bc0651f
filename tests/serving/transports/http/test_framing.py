"""Where a request ends is read in one way, whatever it asks for and however its bytes come."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from http_framing import Reader, disagreement, pieces, stream

INNER = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = INNER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


def test_requests_begin_and_end_where_h11_sees_it(reader: Reader) -> None:
    for seed in range(400):
        rng = random.Random(seed)
        data = stream(rng)
        assert disagreement(reader, data, pieces(data, rng)) is None, f"seed {seed}"


def statuses(server: Any, data: bytes) -> list[int]:
    """The status of every reply until the server closes, or until each of the requests has its own."""
    with socket.create_connection((server.host, server.port), timeout=30) as client:
        with contextlib.suppress(ConnectionError):  # refused before all was sent
            client.sendall(data)
        received = client.makefile("rb").read()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.mark.parametrize("wish", ["h2c", "TLS/1.0", "h2c, websocket", "websocket/13"])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_of_a_request_that_asks_for_another_protocol_is_no_request(server, wish: str, chunked: bool) -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER) if chunked else INNER
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(INNER)
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n\r\n"
    assert statuses(server, head % (wish.encode(), length) + body + LAST) == [400, 200]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost, localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: local host\r\n\r\n", 400),
        (b"GET /v2 HTTP/2.0\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/0.9\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v2\r\n\r\n", 400),
        (b"GET http://other/v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"POST /v2 HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
    ],
)
def test_heads_that_leave_the_end_in_doubt_are_refused(server, head: bytes, status: int) -> None:
    assert statuses(server, head + LAST) == [status]


def test_nothing_after_the_last_request_is_answered(server) -> None:
    assert statuses(server, LAST + LAST) == [200]
    old = b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    assert statuses(server, old + LAST) == [200]


@pytest.mark.parametrize(
    ("handshake", "status"),
    [
        (HANDSHAKE.replace(b"Version: 13", b"Version: 12"), 426),
        (HANDSHAKE.replace(b"dGhl", b"dGhlIHNo"), 400),
        (HANDSHAKE.replace(b"GET", b"POST"), 400),
        (HANDSHAKE.replace(b"Host", b"Content-Length: 3\r\nHost"), 400),
        (HANDSHAKE + b"\x89\x80abcd", 400),
        (HANDSHAKE.replace(b"Host", b"X: " + b"a" * 20000 + b"\r\nHost"), 431),
        (HANDSHAKE.replace(b"/v1/stream", b"/v1/none"), 403),
    ],
)
def test_a_handshake_that_fails_is_told_and_ends(server, handshake: bytes, status: int) -> None:
    assert statuses(server, handshake) == [status]


def test_trailers_are_no_headers(server) -> None:
    head = (
        b"POST /v2/repository/index HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    )
    assert statuses(server, head + b"Host: evil.example\r\n\r\n" + LAST) == [200, 200]
    assert statuses(server, head + b"X: " + b"y" * 1_000_000) == [431]
