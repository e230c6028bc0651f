"""Clients that send too much, too slowly, too many at a time, or leave: bounded, answered, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

INFER = "/v2/models/tiny/infer"
TENSOR = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0] * 192}
BODY = json.dumps({"inputs": [TENSOR], "outputs": [{"name": "class_id"}]}).encode()
REQUEST = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY


@pytest.fixture(scope="module")
def limited(run_server, tiny_bundle) -> Iterator[Any]:
    limits = {"header_bytes": 2048, "read_s": 0.5, "idle_s": 1, "body_bytes": 10_000}
    with run_server(tiny_bundle, limits=limits) as server:
        yield server


def connect(server: Any) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=30)


def replies(connection: socket.socket) -> list[tuple[int, Any]]:
    """Status and JSON of every reply until the server closes."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        length = int(headers[b"content-length"])
        found.append((int(head.split()[1]), json.loads(rest[:length] or b"null")))
        data = rest[length:]
    return found


def refused(server: Any, request: bytes, status: int) -> str:
    with connect(server) as connection:
        connection.sendall(request)
        ((got, content),) = replies(connection)
    assert (got, list(content)) == (status, ["error"])
    return str(content["error"])


def test_a_request_that_is_no_http(limited) -> None:
    assert refused(limited, b"hello there\r\n\r\n", 400) == "the request is not valid HTTP"
    assert (
        refused(limited, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400)
        == "the request is not valid HTTP"
    )


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 3000 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * 1500 + b"\r\n",
        b"GET /" + b"v" * 3000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["long", "many", "path"],
)
def test_headers_past_the_limit(limited, head: bytes) -> None:
    assert "more than 2048 bytes" in refused(limited, head, 431)


def test_a_header_without_an_end(limited) -> None:
    """The parser would hold it for ever."""
    with connect(limited) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: ")
        with pytest.raises((ConnectionError, TimeoutError)):
            while True:
                connection.sendall(b"x" * 1000)
                time.sleep(0)


@pytest.mark.parametrize("sent", [b"POST", REQUEST[:40], REQUEST[:-1]], ids=["word", "head", "body"])
def test_a_request_that_comes_too_slowly(limited, sent: bytes) -> None:
    assert "took longer than 0.5 s" in refused(limited, sent, 408)


def test_a_connection_that_says_nothing_is_closed(limited) -> None:
    with connect(limited) as silent:
        assert replies(silent) == []
    with connect(limited) as idle:
        idle.sendall(REQUEST)
        assert [status for status, _ in replies(idle)] == [200]


def test_too_many_connections(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, limits={"connections": 20}) as server:
        connections = [connect(server) for _ in range(40)]
        try:
            for connection in connections:
                connection.sendall(REQUEST)
            lines = [connection.makefile("rb").readline() for connection in connections]
        finally:
            for connection in connections:
                connection.close()
    assert [line.split()[1] for line in lines] == [b"200"] * 20 + [b"503"] * 20


def test_requests_one_behind_the_other_without_waiting(limited) -> None:
    bad = REQUEST.replace(b"FP32", b"FP64")
    with connect(limited) as connection:
        connection.sendall(
            REQUEST + bad + REQUEST * 3 + REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        )
        assert [status for status, _ in replies(connection)] == [200, 400, 200, 200, 200, 200]


def test_a_body_that_announces_too_much_is_refused_before_it_comes(limited) -> None:
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    with connect(limited) as connection:
        connection.sendall(head)
        assert [status for status, _ in replies(connection)] == [413]


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_only_closes_its_sending_side_gets_its_answers(run_server, tiny_bundle, requests: int) -> None:
    with run_server(tiny_bundle, limits={"half_closed_s": 60}) as server, connect(server) as connection:
        connection.sendall(REQUEST * requests)
        connection.shutdown(socket.SHUT_WR)
        assert [status for status, _ in replies(connection)] == [200] * requests


def test_an_answer_that_takes_too_long_for_a_client_that_may_be_gone(run_server, tiny_bundle) -> None:
    faults = {"faults": "*:delay=1s"}
    with (
        run_server(tiny_bundle, inference=faults, limits={"half_closed_s": 0}) as server,
        connect(server) as connection,
    ):
        connection.sendall(REQUEST)
        connection.shutdown(socket.SHUT_WR)
        assert replies(connection) == []
        admission = server.repository.get("tiny").admission
        while admission.in_flight:
            time.sleep(0)
        assert server.repository.get("tiny").counters.succeeded == 0


@pytest.mark.parametrize("sent", [b"", b"POST", REQUEST[:40], REQUEST[:-1]], ids=["nothing", "word", "head", "body"])
def test_a_client_that_stops_in_the_middle_is_let_go(run_server, tiny_bundle, sent: bytes) -> None:
    """At once: no limit on time is what ends it."""
    limits = {"half_closed_s": 60, "read_s": 60, "idle_s": 60}
    with run_server(tiny_bundle, limits=limits) as server, connect(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert replies(connection) == []


def test_a_client_that_leaves_is_not_answered(run_server, tiny_bundle) -> None:
    """Its request gives up its place, so that the next one is not refused."""
    with run_server(tiny_bundle, inference={"faults": "*:delay=1s"}, limits={"in_flight": 1}) as server:
        admission = server.repository.get("tiny").admission
        for path in (INFER, "/v1/predict"):
            body = BODY if path == INFER else json.dumps({"inputs": [[[0] * 8] * 8] * 3}).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            with connect(server) as connection:
                connection.sendall(head.encode() + body)
                while not admission.in_flight:
                    time.sleep(0)
            while admission.in_flight:
                time.sleep(0)
        assert server.repository.get("tiny").counters.succeeded == 0


def test_a_thousand_connections_at_once(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, limits={"in_flight": 2000}) as server:
        connections = [connect(server) for _ in range(1000)]
        try:
            for connection in connections:
                connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            with ThreadPoolExecutor(8) as pool:
                statuses = list(pool.map(lambda connection: [status for status, _ in replies(connection)], connections))
        finally:
            for connection in connections:
                connection.close()
        assert statuses == [[200]] * 1000


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
UNFINISHED = b"\x01\x82\x00\x00\x00\x00ab"  # the first fragment of a text
PINGS = b"\x89\xfd\x00\x00\x00\x00" + b"p" * 125


@pytest.mark.parametrize(
    "sent",
    [b"\r\n", STREAM.replace(b"13", b"12")],
    ids=["an empty line", "a handshake that fails"],
)
def test_every_connection_ends(limited, sent: bytes) -> None:
    with connect(limited) as connection:
        connection.sendall(sent)
        until_closed(connection)


def test_a_connection_whose_replies_nobody_reads_ends(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, limits={"idle_s": 0.5, "connections": 1}) as server, connect(server) as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
        while httpx.get(f"{server.url}/v2", timeout=30).status_code != 200:
            pass  # until its place is free


@pytest.mark.parametrize("then", [UNFINISHED, b"\x82\xfe", PINGS * 60_000], ids=["fragment", "frame", "pings"])
def test_every_websocket_that_does_not_go_on_ends(limited, then: bytes) -> None:
    with connect(limited) as connection:
        connection.sendall(STREAM)
        assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
        with contextlib.suppress(OSError):
            connection.sendall(then)  # where nothing is read back, the server stops reading
        until_closed(connection)


def until_closed(connection: socket.socket) -> None:
    """Wait without reading until the server has closed the connection."""
    watched = select.poll()
    watched.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    assert watched.poll(30_000)


def test_health_gets_through_where_every_connection_is_taken(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, limits={"connections": 5}) as server:
        taken = [connect(server) for _ in range(5)]
        try:
            for connection in taken:
                connection.sendall(REQUEST)
                assert connection.recv(12) == b"HTTP/1.1 200"
            for _ in range(30):
                with connect(server) as operator:
                    operator.sendall(LIVE)
                    assert replies(operator) == [(200, {"live": True})]
            with connect(server) as client:
                client.sendall(REQUEST)
                assert [status for status, _ in replies(client)] == [503]
        finally:
            for connection in taken:
                connection.close()


def test_connections_over_grpc_count_too(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, grpc="127.0.0.1:0", limits={"connections": 20}) as server:
        host, port = server.grpc.split(":")
        connections = [socket.create_connection((host, int(port)), timeout=30) for _ in range(40)]
        try:
            # The server speaks first on each that it keeps, and closes the others.
            kept = [connection for connection in connections if _greets(connection)]
            assert len(kept) <= 10
            with connect(server) as client:
                client.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                assert [status for status, _ in replies(client)] == [200]
        finally:
            for connection in connections:
                connection.close()


def _greets(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        return connection.recv(1) != b""
    except OSError:
        return False
