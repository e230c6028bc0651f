"""The lean client: replies however they are cut, requests as our server and tritonclient understand them."""

from __future__ import annotations

import json
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sensai_serve
from benchmarks.harness import codecs
from benchmarks.harness.client import RawClient, RawConnection
from benchmarks.harness.interleave import TimedCalls, in_turns
from benchmarks.harness.load_generator import LOST, closed_loop, latencies, open_loop, poisson_arrivals
from benchmarks.harness.triton_client import TritonClient
from sensai_serve.errors import ServingError

SAMPLES = [np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32) for i in range(6)]


def whole(body: bytes, *, chunks: list[int] | None = None) -> bytes:
    if chunks is None:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-More: yes\r\n\r\n%b" % (len(body), body)
    parts, at = [], 0
    for size in chunks:
        if part := body[at : at + size]:
            parts.append(b"%x\r\n%b\r\n" % (len(part), part))
        at += size
    if rest := body[at:]:
        parts.append(b"%x\r\n%b\r\n" % (len(rest), rest))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % b"".join(parts)


@given(
    body=st.binary(max_size=400),
    chunks=st.none() | st.lists(st.integers(1, 90), max_size=5),
    cuts=st.lists(st.integers(1, 600), max_size=6),
)
def test_a_reply_comes_out_whole_however_it_arrives(body: bytes, chunks: list[int] | None, cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = RawConnection(ours)
        data, at, done = whole(body, chunks=chunks), 0, False
        for cut in [*sorted(set(cuts)), len(data)]:
            if part := data[at:cut]:
                assert not done
                theirs.sendall(part)
                done = connection.receive()
                at += len(part)
        assert done
        assert connection.status == 200
        assert connection.reply()[1] == body


def test_replies_larger_than_the_buffer(answer_with) -> None:
    body = bytes(range(256)) * 4000
    with answer_with(lambda connection, _: connection.sendall(whole(body))) as address:
        connection = RawConnection.open(*address)
        for _ in range(2):
            connection.begin(codecs.http_request("/", b"x", {}))
            while not connection.receive():
                pass
            assert connection.reply()[1] == body
        connection.close()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy", "status 503: busy"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil I close", "neither its length nor"),
        (b"", "no reply"),
    ],
)
def test_what_is_no_good_reply_is_said(answer_with, reply: bytes, message: str) -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(reply)
        connection.shutdown(socket.SHUT_RDWR)

    with answer_with(answer) as address:
        client = RawClient(*address, codecs.Empty(), SAMPLES)
        with pytest.raises(ServingError, match=message):
            client.exchange(0)
        client.close()


@pytest.mark.parametrize("kind", [codecs.V2Binary, codecs.V2Json])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-30, 30))
def test_requests_hold_the_very_numbers(kind: type, seed: int, exponent: int) -> None:
    sample = (np.random.default_rng(seed).normal(size=(1, 3, 8, 8)) * 10.0**exponent).astype(np.float32)
    head, _, body = kind("m").request(sample).partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    length = int(codecs.header_value(head.lower(), b"inference-header-content-length") or len(body))
    header = json.loads(body[:length])
    tensor = header["inputs"][0]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("input", "FP32", [1, 3, 8, 8])
    numbers = np.array(tensor["data"], np.float32) if "data" in tensor else np.frombuffer(body[length:], np.float32)
    np.testing.assert_array_equal(numbers, sample.reshape(-1))
    assert [output["name"] for output in header["outputs"]] == ["scores", "class_id"]


def clients(served):
    model = "tiny"
    yield RawClient(served.host, served.port, codecs.V2Binary(model), SAMPLES)
    yield RawClient(served.host, served.port, codecs.V2Binary(model, parameters={"wait": "all"}), SAMPLES)
    yield RawClient(served.host, served.port, codecs.V2Json(model), SAMPLES)
    yield TritonClient("http", served.host, served.port, model, SAMPLES)


def test_every_client_gets_the_answers_of_the_bundle(served, tiny_bundle) -> None:
    classifier = sensai_serve.load(tiny_bundle)
    for client in clients(served):
        for index, sample in enumerate(SAMPLES):
            client.exchange(index)
            answer = client.answer()
            assert answer.class_id == classifier.predict_tensor(sample).class_id[0]
            arrived, missing = (codecs.workers_of(answer, key) for key in ("arrived", "missing"))
            assert sorted(arrived + missing) == list(range(10))
            assert answer.scores is not None
            assert answer.scores.shape == (10,)
        client.close()


def test_an_error_of_the_server_is_said_in_its_words(served) -> None:
    for client in (
        RawClient(served.host, served.port, codecs.V2Binary("other"), SAMPLES),
        TritonClient("http", served.host, served.port, "other", SAMPLES),
    ):
        with pytest.raises(ServingError, match="unknown model 'other'"):
            client.exchange(0)
        client.close()


def test_loads_send_what_they_say(served) -> None:
    requests = [codecs.V2Binary("tiny").request(sample) for sample in SAMPLES]
    client = RawClient(served.host, served.port, codecs.V2Binary("tiny"), SAMPLES)
    times = in_turns({"raw": TimedCalls(client.exchange)}, rounds=3, per_round=4, n_samples=len(SAMPLES))
    assert [len(seconds) for seconds in times["raw"]] == [4, 4, 4]
    client.close()
    exchanges = closed_loop(served.address, requests, clients=3, count=20, keep_replies=True)
    assert [e.status for e in exchanges] == [200] * 20
    assert sorted(e.request for e in exchanges) == sorted(i % 6 for i in range(20))
    answers = {(e.request, codecs.V2Binary("tiny").answer(*e.reply).class_id) for e in exchanges}
    assert len(answers) == len(SAMPLES)
    exchanges = open_loop(served.address, requests, rate=200, seconds=0.2, connections=8)
    assert len(exchanges) == len(poisson_arrivals(200, 0.2, 0))
    assert (latencies(exchanges) > 0).all()


def test_in_an_open_loop_a_stall_counts_for_all_that_were_due(answer_with) -> None:
    stalled: list[bool] = []

    def answer(connection: socket.socket, _: bytes) -> None:
        if not stalled:
            stalled.append(threading.Event().wait(0.4))  # until every request is overdue
        connection.sendall(whole(b""))

    with answer_with(answer) as address:
        exchanges = open_loop(address, [codecs.http_request("/", b"", {})], rate=500, seconds=0.1, connections=1)
    assert len(exchanges) > 10
    first = exchanges[0]
    assert all(e.sent >= first.done for e in exchanges[1:])
    assert all(e.latency >= first.done - e.due for e in exchanges[1:])


def test_a_connection_that_breaks_is_lost_and_made_again(answer_with) -> None:
    seen = []

    def answer(connection: socket.socket, _: bytes) -> None:
        seen.append(True)
        if len(seen) == 2:
            connection.shutdown(socket.SHUT_RDWR)
        else:
            connection.sendall(whole(b"ok"))

    with answer_with(answer) as address:
        exchanges = closed_loop(address, [codecs.http_request("/", b"", {})], count=4)
    assert [e.status for e in exchanges] == [200, LOST, 200, 200]
