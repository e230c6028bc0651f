"""The fast path gives the replies and counts that the usual way gives, and leaves to it what is out of the ordinary."""

from __future__ import annotations

import itertools
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.request import urlopen

import numpy as np
import orjson
import pytest
from bundle_fixtures import write_bundle
from fast_path_fixtures import INLINE, MODELS, OUTPUTS, counted, leave_nothing_to_chance, tensors

from serving.engine.workers.health import State
from serving.transports.http.connection.fast_path import FastPath

_odd = itertools.count()


class Connection:
    """One connection over which requests go and whole replies come."""

    def __init__(self, server: Any) -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=30)
        self._file = self._socket.makefile("rb")

    def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """The reply's head without what differs between any two replies, and its body."""
        self._socket.sendall(request)
        head = b"".join(iter(self._file.readline, b"\r\n"))
        length = re.search(rb"\ncontent-length: (\d+)", head)
        assert length is not None
        body = self._file.read(int(length[1]))
        return re.sub(rb"(x-request-id|date): [^\r]+", rb"\1", head), body

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextmanager
def connected(server: Any) -> Iterator[Connection]:
    connection = Connection(server)
    try:
        yield connection
    finally:
        connection.close()


def request_of(tensor: np.ndarray, *more: str, wait: str = "", outputs: tuple[str, ...] = ()) -> bytes:
    """An infer request with these headers more."""
    size = {"binary_data_size": tensor.nbytes}
    entry = {"name": "input", "datatype": "FP32", "shape": tensor.shape, "parameters": size}
    parameters = {"binary_data_output": True} | ({"wait": wait} if wait else {})
    asked = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    header = orjson.dumps({"inputs": [entry], "parameters": parameters} | asked)
    lines = ["POST /v2/models/tiny/infer HTTP/1.1", "Host: localhost", *more]
    lines += [f"Inference-Header-Content-Length: {len(header)}", f"Content-Length: {len(header) + tensor.nbytes}"]
    return "\r\n".join([*lines, "", ""]).encode() + header + tensor.tobytes()


def usual(tensor: np.ndarray, **asked: Any) -> bytes:
    """The same request as `request_of`, with a header that no request had before: it goes the usual way."""
    return request_of(tensor, f"X-Odd: {next(_odd)}", **asked)


class Answered:
    """Says of each request that the fast path was given, in turn, whether it answered it."""

    def __init__(self) -> None:
        self._each: SimpleQueue[bool] = SimpleQueue()

    def note(self, *, fast: bool) -> None:
        self._each.put(fast)

    def fast(self, count: int = 1) -> list[bool]:
        """Of the next requests; an answer is there before the fast path has said that it gave it."""
        return [self._each.get(timeout=30) for _ in range(count)]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Answered:
    """Of each request that the fast path was given, whether it answered it."""
    found, answer = Answered(), FastPath.answer

    def noted(path: FastPath, data: bytes, connection: Any) -> bool:
        fast = answer(path, data, connection)
        if not data.startswith((b"GET", b"POST /v2/repository")):
            found.note(fast=fast)
        return fast

    monkeypatch.setattr(FastPath, "answer", noted)
    leave_nothing_to_chance(monkeypatch)
    return found


def learnt(connection: Connection, answered: Answered, tensor: np.ndarray, **asked: Any) -> None:
    """Have the fast path learn the front of a request."""
    for _ in range(3):
        connection.ask(request_of(tensor, **asked))
    answered.fast(3)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("wait", ["", "all"])
def test_replies_equal_those_of_the_usual_way(
    model: str, wait: str, run_server: Any, tmp_path: Path, answered: Answered
) -> None:
    options = MODELS[model]
    bundle = write_bundle(tmp_path / "tiny", image=None, **options)
    with run_server(bundle, inference=INLINE) as server, connected(server) as connection:
        order = np.random.default_rng(2)
        for outputs in [(), *(tuple(order.permutation(OUTPUTS)[:n]) for n in (1, 2, 3, 4, 5))]:
            given = tensors(8, (1, *options.get("shape", (3, 8, 8))))
            learnt(connection, answered, given[0], wait=wait, outputs=outputs)
            fast = [connection.ask(request_of(tensor, wait=wait, outputs=outputs)) for tensor in given]
            assert answered.fast(len(given)) == [True] * len(given)
            assert fast == [connection.ask(usual(tensor, wait=wait, outputs=outputs)) for tensor in given]
            assert answered.fast(len(given)) == [False] * len(given)


@pytest.mark.parametrize("model", ["one worker", "copies that differ"])
def test_counts_equal_those_of_the_usual_way(model: str, run_server: Any, tmp_path: Path, answered: Answered) -> None:
    bundle = write_bundle(tmp_path / "tiny", image=None, **MODELS[model])
    found = []
    for make in (request_of, usual):
        with run_server(bundle, inference=INLINE) as server, connected(server) as connection:
            for tensor in tensors(40):
                connection.ask(make(tensor))
            found.append(counted(server))
    assert answered.fast(40).count(True) > 30
    assert found[0] == found[1]


def test_bad_values_and_huge_ones_are_left_to_the_usual_way(
    run_server: Any, tiny_bundle: Path, answered: Answered
) -> None:
    with run_server(tiny_bundle, inference=INLINE) as server, connected(server) as connection:
        (sound,) = tensors(1)
        learnt(connection, answered, sound)
        huge = np.full_like(sound, 3e38)
        assert connection.ask(request_of(huge)) == connection.ask(usual(huge))
        answered.fast(2)
        for wrong in (np.nan, np.inf, -np.inf):
            bad = sound.copy()
            bad.flat[100] = wrong
            head, body = connection.ask(request_of(bad))
            assert head.startswith(b"HTTP/1.1 400")
            assert b"NaN or infinity" in body
            assert answered.fast() == [False]
        connection.ask(request_of(sound))
        assert answered.fast() == [True]


def test_requests_that_look_alike_are_told_apart(run_server: Any, tiny_bundle: Path, answered: Answered) -> None:
    with run_server(tiny_bundle, inference=INLINE) as server, connected(server) as connection:
        first, second = tensors(2)
        learnt(connection, answered, first)
        expected, whole = connection.ask(usual(second)), request_of(second)
        connection._socket.sendall(whole[:100])
        assert answered.fast(2) == [False, False]
        assert connection.ask(whole[100:]) == expected
        connection._socket.sendall(whole + whole)
        assert connection.ask(b"") == connection.ask(b"") == expected
        assert answered.fast() == [False]
        assert connection.ask(whole) == expected
        assert answered.fast() == [True]


def test_another_model_of_that_name_answers_as_soon_as_it_is_loaded(
    run_server: Any, tmp_path: Path, answered: Answered
) -> None:
    models = tmp_path / "models"
    write_bundle(models / "tiny", seed=1)
    write_bundle(tmp_path / "next", seed=2)
    (tensor,) = tensors(1)
    with run_server(models / "tiny", repository=models, inference=INLINE) as server, connected(server) as connection:
        learnt(connection, answered, tensor)
        before = connection.ask(request_of(tensor))
        assert answered.fast() == [True]
        shutil.rmtree(models / "tiny")
        shutil.copytree(tmp_path / "next", models / "tiny")
        with urlopen(f"{server.url}/v2/repository/models/tiny/load", data=b"{}") as reply:
            assert reply.status == 200
        after = connection.ask(request_of(tensor))
        assert before != after == connection.ask(usual(tensor))
        assert answered.fast(2) == [False, False]
        learnt(connection, answered, tensor)
        assert after == connection.ask(request_of(tensor))
        assert answered.fast() == [True]
        with urlopen(f"{server.url}/v2/repository/models/tiny/unload", data=b"{}") as reply:
            assert reply.status == 200
        head, _ = connection.ask(request_of(tensor))
        assert head.startswith(b"HTTP/1.1 404")
        assert answered.fast() == [False]


@pytest.mark.parametrize(
    "settings",
    [
        {"inference": {"inline_ms": 0, "wait": "all"}},
        {"inference": {"wait": "quorum"}},
        {"inference": {"abstain_margin": 0.1}},
        {"inference": {"allow_faults": True}},
        {"access_log": True},
    ],
    ids=str,
)
def test_servers_that_look_at_each_request_take_the_usual_way(
    settings: dict[str, Any], run_server: Any, tiny_bundle: Path, answered: Answered
) -> None:
    with run_server(tiny_bundle, **settings) as server, connected(server) as connection:
        for tensor in tensors(5):
            assert connection.ask(request_of(tensor)) == connection.ask(usual(tensor))
    assert answered.fast(10) == [False] * 10


def test_a_worker_that_is_not_live_is_left_to_the_usual_way(
    run_server: Any, tiny_bundle: Path, answered: Answered
) -> None:
    with run_server(tiny_bundle, inference=INLINE | {"wait": "all"}) as server, connected(server) as connection:
        (tensor,) = tensors(1)
        learnt(connection, answered, tensor)
        whole = connection.ask(request_of(tensor))
        assert answered.fast() == [True]
        server.repository.get("tiny").workers[3].state = State.DEAD
        head, body = connection.ask(request_of(tensor))
        assert answered.fast() == [False]
        assert b'"missing":"3"' in body
        assert (head, body) == connection.ask(usual(tensor)) != whole
