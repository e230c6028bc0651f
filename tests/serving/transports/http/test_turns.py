"""A connection that sends many requests or frames at a time has one of them dealt with in a turn of the event loop."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import socket
from collections.abc import Iterator

import pytest
from http_framing import Reader, stream
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from serving.transports.http.connection.pieces import END, FrameCutter, piece_end

INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST /b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@given(requests=st.lists(st.sampled_from([INFER, GET, CHUNKED]), min_size=2, max_size=30), blank=st.booleans())
def test_one_request_begins_in_a_turn(reader: Reader, requests: list[bytes], blank: bool) -> None:
    begun = reader.begun_by_turn((b"\r\n" if blank else b"").join(requests))
    assert begun[-1] == len(requests)
    assert max(later - earlier for earlier, later in zip([0, *begun], begun, strict=False)) == 1


@given(seed=st.integers(0, 2**32), before=st.binary(max_size=3))
def test_pieces_are_the_whole_and_no_end_is_inside_one(seed: int, before: bytes) -> None:
    data, at, ends = stream(random.Random(seed)), 0, []
    while at < len(data):
        end = piece_end(data, at, 0, before)
        assert at < end <= len(data)
        found = (before + data[at:end]).find(END)
        assert found in (-1, len(before) + end - at - len(END))
        before = (before + data[at:end])[-3:]
        at = end
        ends.append(end)
    assert ends[-1] == len(data)


def frame(payload: bytes, masked: bool) -> bytes:
    size = len(payload)
    bits = 0x80 if masked else 0
    lengths = (
        bytes([bits | size])
        if size < 126
        else bytes([bits | 126]) + size.to_bytes(2, "big")
        if size < 65536
        else bytes([bits | 127]) + size.to_bytes(8, "big")
    )
    return b"\x82" + lengths + (b"mask" if masked else b"") + payload


@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 125, 126, 300, 65535, 65536]), min_size=1, max_size=5),
    masked=st.booleans(),
    cuts=st.lists(st.integers(0, 140_000), max_size=8),
)
def test_a_frame_is_cut_off_where_it_ends(sizes: list[int], masked: bool, cuts: list[int]) -> None:
    frames = [frame(bytes(size), masked) for size in sizes]
    data, cutter, whole, piece = b"".join(frames), FrameCutter(), [], b""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for begin, end in itertools.pairwise(places):
        received = data[begin:end]
        while received:
            at = cutter.end(received)
            assert 0 < at <= len(received)
            piece += received[:at]
            received = received[at:]
            if piece == frames[len(whole)]:
                whole.append(piece)
                piece = b""
    assert whole == frames


def test_frames_by_the_hundred_are_read(server) -> None:
    question = json.dumps({"inputs": [[[0] * 8] * 8] * 3})
    with connect(f"ws://{server.address}/v1/stream?model=tiny") as client:
        for _ in range(300):
            client.send(question)
        numbers = []
        while not numbers or numbers[-1] < 299:
            answer = json.loads(client.recv(timeout=60))
            assert "label" in answer
            numbers.append(answer["frame"])
    assert numbers == sorted(set(numbers))


def test_text_that_is_no_utf_8_ends_the_stream_and_logs_no_traceback(server, caplog) -> None:
    with (
        caplog.at_level(logging.WARNING),
        connect(f"ws://{server.address}/v1/stream?model=tiny") as client,
        pytest.raises(ConnectionClosedError, match="1007"),
    ):
        client.send([b"\xff"], text=True)
        client.recv(timeout=60)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_leaves_in_the_middle_of_many_requests_logs_no_traceback(server, caplog) -> None:
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with caplog.at_level(logging.WARNING):
        for count in range(1, 20):
            with socket.create_connection((server.host, server.port), timeout=30) as client:
                client.sendall(health * 50)
                client.recv(count)
        with socket.create_connection((server.host, server.port), timeout=30) as client:
            client.sendall(health)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.exc_info]


def test_a_handshake_after_a_request_is_taken_when_that_is_answered(server) -> None:
    handshake = (
        b"GET /v1/stream?model=tiny HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection((server.host, server.port), timeout=30) as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + handshake)
        received = b""
        with contextlib.suppress(TimeoutError):
            while b" 101 " not in received:
                received += client.recv(1 << 16)
    assert received.index(b"HTTP/1.1 200 ") < received.index(b"HTTP/1.1 101 ")
