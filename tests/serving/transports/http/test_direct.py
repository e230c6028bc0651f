"""Infer requests that skip ASGI are answered as those that do not, however their bytes come."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

SHAPE = (1, 3, 8, 8)
PATH = "/v2/models/tiny/infer"


@pytest.fixture(scope="module", params=["on the event loop's thread", "handed over"])
def either(request: pytest.FixtureRequest, run_server: Any, tiny_bundle: Any) -> Iterator[Any]:
    inline_ms = 1.0 if request.param == "on the event loop's thread" else 0.0
    with run_server(tiny_bundle, inference={"inline_ms": inline_ms, "wait": "all"}, limits={"idle_s": 2}) as server:
        yield server


def body_of(seed: int) -> tuple[bytes, int]:
    tensor = np.random.default_rng(seed).normal(size=SHAPE).astype("<f4")
    entry = {"name": "input", "datatype": "FP32", "shape": SHAPE, "parameters": {"binary_data_size": tensor.nbytes}}
    header = orjson.dumps({"inputs": [entry], "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]})
    return header + tensor.tobytes(), len(header)


def request_of(seed: int, *more: str, path: str = PATH) -> bytes:
    body, length = body_of(seed)
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Inference-Header-Content-Length: {length}", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Wire:
    """A connection whose replies are taken one by one."""

    def __init__(self, server: Any) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=30)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def reply(self) -> tuple[int, bytes]:
        """Status and the bytes of the scores, or of the error."""
        status = int(self._file.readline().split()[1])
        headers = http.client.parse_headers(self._file)
        data = self._file.read(int(headers["Content-Length"]))
        return status, data[int(headers.get("Inference-Header-Content-Length", 0)) :]

    def ask(self, *chunks: bytes) -> tuple[int, bytes]:
        for chunk in chunks:
            self.socket.sendall(chunk)
        return self.reply()


@pytest.fixture(scope="module")
def expected(either: Any) -> list[bytes]:
    """The scores of each seed, from requests that go the ASGI way: their bodies come in HTTP's chunks."""
    answers = []
    with Wire(either) as wire:
        for seed in range(6):
            body, length = body_of(seed)
            lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", f"Inference-Header-Content-Length: {length}"]
            head = "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode()
            status, scores = wire.ask(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            assert (status, len(scores)) == (200, 40)
            answers.append(scores)
    assert len(set(answers)) == 6
    return answers


def test_the_same_head_again_and_again(either: Any, expected: list[bytes]) -> None:
    with Wire(either) as wire:
        for seed in (0, 1, 2, 1, 0):
            assert wire.ask(request_of(seed)) == (200, expected[seed])


@pytest.mark.parametrize("size", [1, 7, 100, 300])
def test_a_request_in_pieces(either: Any, expected: list[bytes], size: int) -> None:
    with Wire(either) as wire:
        assert wire.ask(request_of(0)) == (200, expected[0])
        request = request_of(3)
        assert wire.ask(*(request[at : at + size] for at in range(0, len(request), size))) == (200, expected[3])
        assert wire.ask(request_of(4)) == (200, expected[4])


def test_requests_that_come_together_are_answered_in_their_order(either: Any, expected: list[bytes]) -> None:
    with Wire(either) as wire:
        wire.socket.sendall(b"".join(request_of(seed) for seed in (0, 1, 2, 3)))
        assert [wire.reply() for _ in range(4)] == [(200, expected[seed]) for seed in (0, 1, 2, 3)]
        wire.socket.sendall(request_of(4) + b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n" + request_of(5))
        assert wire.reply() == (200, expected[4])
        assert wire.reply()[0] == 200
        assert wire.reply() == (200, expected[5])


def test_a_head_that_the_parser_forgives_is_not_taken_for_another(either: Any, expected: list[bytes]) -> None:
    """Where a head ends is for the parser to say: what comes after a bare line feed must not become part of one."""
    body, length = body_of(1)
    for separator in (b"\n", b"\r\n"):
        lines = [f"POST {PATH} HTTP/1.1".encode(), b"Host: localhost", b"Inference-Header-Content-Length: %d" % length]
        head = separator.join([*lines, b"Content-Length: %d" % len(body), b"", b""])
        for _ in range(2):
            with Wire(either) as wire:
                status, scores = wire.ask(head + body)
                assert status == 400 or (status, scores) == (200, expected[1])


def test_a_connection_that_is_to_be_closed_is(either: Any, expected: list[bytes]) -> None:
    for _ in range(2):
        with Wire(either) as wire:
            assert wire.ask(request_of(0, "Connection: close")) == (200, expected[0])
            assert wire.socket.recv(1) == b""


def test_errors_are_told_and_the_connection_goes_on(either: Any, expected: list[bytes]) -> None:
    with Wire(either) as wire:
        for _ in range(2):
            status, error = wire.ask(request_of(0, path="/v2/models/other/infer"))
            assert (status, b"unknown model" in error) == (404, True)
            assert wire.ask(request_of(2)) == (200, expected[2])
            nothing = np.full(SHAPE, np.nan, "<f4").tobytes()
            request = request_of(2)
            status, error = wire.ask(request[: -len(nothing)] + nothing)
            assert (status, b"NaN or infinity" in error) == (400, True)


def test_clients_that_leave_cost_nothing(either: Any, expected: list[bytes]) -> None:
    for _ in range(20):
        with Wire(either) as wire:
            wire.socket.sendall(request_of(0))
    with Wire(either) as wire:
        assert wire.ask(request_of(1)) == (200, expected[1])
    gateway = either.repository.get("tiny")
    assert gateway.admission.in_flight == 0


def test_an_idle_connection_is_closed(either: Any, expected: list[bytes]) -> None:
    with Wire(either) as wire:
        for seed in (0, 1):
            assert wire.ask(request_of(seed)) == (200, expected[seed])
        assert wire.socket.recv(1) == b""
