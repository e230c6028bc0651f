"""Bodies of all requests together take no more memory than allowed, and none is waited for without need."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from serving.engine.intake.body_budget import FULL

INFER = "/v2/models/tiny/infer"
TENSOR = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0] * 192}
BODY = json.dumps({"inputs": [TENSOR], "outputs": [{"name": "class_id"}]}).encode()
MOST = 1_000_000
"""Bytes of all bodies together, on the server of these tests."""
HALF = 600_000


@pytest.fixture(scope="module")
def limited(run_server, tiny_bundle) -> Iterator[Any]:
    with run_server(tiny_bundle, limits={"body_bytes": MOST, "bodies_bytes": MOST, "batch": 1000}) as server:
        yield server


def connect(server: Any) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=30)


def head(length: int, *, path: str = INFER, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def reply(connection: socket.socket) -> tuple[int, dict[bytes, bytes], Any]:
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = dict(line.strip().lower().split(b": ", 1) for line in iter(file.readline, b"\r\n"))
        return status, headers, json.loads(file.read(int(headers[b"content-length"])))


def post(server: Any, body: bytes, more: str = "") -> int:
    with connect(server) as connection:
        connection.sendall(head(len(body), more=more) + body)
        return reply(connection)[0]


PATHS = {"direct": (INFER, ""), "asgi": (INFER, "Content-Encoding: identity\r\n"), "predict": ("/v1/predict", "")}


@pytest.mark.parametrize("way", PATHS)
def test_of_bodies_that_never_end_the_largest_makes_room(limited, way: str) -> None:
    path, more = PATHS[way]
    with connect(limited) as first, connect(limited) as second:
        first.sendall(head(HALF + 1, path=path, more=more) + bytes(HALF))
        assert post(limited, BODY) == 200
        second.sendall(head(MOST, path=path, more=more) + bytes(MOST // 2))
        assert post(limited, BODY.ljust(20_000)) == 200
        second.sendall(bytes(HALF // 2))
        status, headers, content = reply(first)
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert "bodies of all requests" in content["error"]
        second.sendall(bytes(MOST - MOST // 2 - HALF // 2))
        assert reply(second)[0] == 400  # it came whole: zeros are no request


def test_chunks_are_counted_as_they_come(limited) -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(limited)) for _ in range(2)]
        for connection in sockets:
            connection.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            connection.sendall(b"%x\r\n" % HALF + bytes(HALF))
        assert sorted(post(limited, BODY.ljust(size)) for size in (1000, 300_000)) == [200, 200]
        for connection in sockets:
            connection.settimeout(0)
        waiting = [s for s in sockets if not readable(s)]
        assert len(waiting) <= 1


def readable(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_what_a_body_took_is_given_back_with_its_reply_and_when_its_client_leaves(limited) -> None:
    with connect(limited) as connection:
        for _ in range(5):
            connection.sendall(head(HALF) + BODY.ljust(HALF))
            assert reply(connection)[0] == 200
    for _ in range(5):
        with connect(limited) as leaving:
            leaving.sendall(head(HALF + 1) + bytes(HALF))
    assert post(limited, BODY.ljust(900_000)) == 200


def test_frames_of_streams_are_counted_as_they_come(limited) -> None:
    def opened(size: int, sent: int) -> socket.socket:
        connection = connect(limited)
        connection.sendall(
            b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        while b"\r\n\r\n" not in connection.recv(1 << 16):
            pass
        connection.sendall(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4) + bytes(sent))
        return connection

    with opened(MOST, MOST * 9 // 10) as large, opened(MOST // 2, MOST * 3 // 10) as small:
        closed = large.recv(1 << 16)
        assert (closed[0], int.from_bytes(closed[2:4], "big"), closed[4:].decode()) == (0x88, 1013, FULL)
        small.sendall(bytes(MOST // 2 - MOST * 3 // 10))
        assert b"not a known image format" in small.recv(1 << 16)
        assert post(limited, bytes(MOST * 9 // 10)) == 400  # nothing is held any more


def test_an_inflated_body_is_counted_too(limited) -> None:
    body = gzip.compress(BODY.ljust(900_000))
    with connect(limited) as first:
        first.sendall(head(HALF + 1) + bytes(HALF))
        assert post(limited, BODY.ljust(300_000)) == 200  # so that the first one's bytes have been read
        assert post(limited, body, "Content-Encoding: gzip\r\n") == 503
        first.sendall(b"0")
        assert reply(first)[0] == 400
    assert post(limited, body, "Content-Encoding: gzip\r\n") == 200


@pytest.mark.parametrize("path", ["/v2/models/other/infer", "/v2/models/tiny/versions/7/infer", "/v1/predict?model=o"])
def test_an_unknown_model_is_refused_before_the_body_comes(limited, path: str) -> None:
    with connect(limited) as connection:
        connection.sendall(head(HALF, path=path))
        assert reply(connection)[0] == 404
        connection.sendall(bytes(HALF))  # the connection goes on where the client sends it all the same
        connection.sendall(head(len(BODY)) + BODY)
        assert reply(connection)[0] == 200


def test_a_budget_below_one_body_is_no_setting(run_server, tiny_bundle) -> None:
    with pytest.raises(ValueError, match="bodies_bytes is 10, expected at least body_bytes"):
        run_server(tiny_bundle, limits={"bodies_bytes": 10}).__enter__()
