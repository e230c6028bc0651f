"""The load generator ends, whatever a server does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks.harness import load_generator
from benchmarks.harness.load_generator import LOST, OK, closed_loop, open_loop, poisson_arrivals

REQUEST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server that takes connections and never answers; replies are waited for a tenth of a second."""
    monkeypatch.setattr(load_generator, "GRACE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def test_an_open_loop_ends_though_no_connection_becomes_idle(silent: tuple[str, int]) -> None:
    exchanges = open_loop(silent, [REQUEST], rate=100, seconds=0.2, connections=2)
    assert len(exchanges) == len(poisson_arrivals(100, 0.2, 0))
    assert {exchange.status for exchange in exchanges} == {LOST}
    assert all(exchange.latency >= 0.1 for exchange in exchanges)


def test_a_closed_loop_ends_too(silent: tuple[str, int]) -> None:
    exchanges = closed_loop(silent, [REQUEST], clients=2, count=4)
    assert [exchange.status for exchange in exchanges] == [LOST] * 4


def test_a_connection_that_the_server_has_closed_while_idle_loses_no_request() -> None:
    answering, closed = threading.Event(), threading.Event()

    def serve(server: socket.socket) -> None:
        """Close a connection after its first reply, and answer the next one."""
        for _ in range(2):
            connection, _ = server.accept()
            connection.recv(1000)
            answering.set()
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            connection.close()
            closed.set()

    def until() -> bool:
        return answering.is_set() and not closed.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        exchanges = closed_loop(server.getsockname(), [REQUEST], count=2, until=until)
        thread.join()
    assert [exchange.status for exchange in exchanges] == [OK, OK]
