"""The load generator ends, whatever a server does."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from benchmarks.harness import load_generator
from benchmarks.harness.load_generator import LOST, closed_loop, open_loop, poisson_arrivals

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
