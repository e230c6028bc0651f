"""``WS /v1/stream``: frames in, answers out, the latest frame first."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import sensai_serve


def open_stream(server: Any, query: str = "") -> ClientConnection:
    return connect(f"ws{server.url.removeprefix('http')}/v1/stream{query}", open_timeout=30)


def ask(stream: ClientConnection, frame: bytes | str) -> dict[str, Any]:
    stream.send(frame)
    reply: dict[str, Any] = json.loads(stream.recv(timeout=30))
    return reply


@pytest.fixture(scope="module")
def frames() -> list[bytes]:
    files = []
    for seed in range(20):
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture
def stream(server) -> Iterator[ClientConnection]:
    with open_stream(server, "?wait=all") as stream:
        yield stream


def test_every_frame_of_a_patient_client_is_answered(stream, tiny_bundle, frames) -> None:
    classifier = sensai_serve.load(tiny_bundle)
    for number, frame in enumerate(frames):
        reply = ask(stream, frame)
        assert (reply["frame"], reply["label"]) == (number, classifier.predict(frame).label)
        assert set(reply) >= {"scores", "votes", "margin", "arrived", "elected", "milliseconds"}


def test_errors_come_among_the_answers(stream, frames) -> None:
    refused = ask(stream, b"no image")
    assert refused["frame"] == 0
    assert refused["error"].startswith("image: not a known image format; expected a readable JPEG, PNG")
    assert "not JSON" in ask(stream, "{")["error"]
    assert "label" in ask(stream, frames[0])
    assert "label" in ask(stream, json.dumps({"inputs": np.zeros((3, 8, 8)).tolist()}))


def test_numbers(run_server, make_bundle) -> None:
    bundle = make_bundle(name="wine", n_classes=3, shape=(4,))
    raw = np.array([1, -2, 3, 0.5], np.float32)
    expected = sensai_serve.load(bundle).predict(raw).label
    with run_server(bundle) as server, open_stream(server, "?wait=all") as stream:
        assert ask(stream, raw.tobytes())["label"] == expected
        assert ask(stream, json.dumps({"inputs": raw.tolist()}))["label"] == expected
        assert "15 bytes, expected 16" in ask(stream, bytes(15))["error"]


def test_of_frames_that_come_too_fast_the_latest_wins(run_server, tiny_bundle, frames) -> None:
    expected = sensai_serve.load(tiny_bundle).predict(frames[-1]).label
    with run_server(tiny_bundle, inference={"faults": "*:delay=100ms"}) as server, open_stream(server) as stream:
        for frame in frames:
            stream.send(frame)
        answered: list[dict[str, Any]] = []
        while not answered or answered[-1]["frame"] != len(frames) - 1:
            answered.append(json.loads(stream.recv(timeout=30)))
    numbers = [reply["frame"] for reply in answered]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < len(frames)
    assert answered[-1]["label"] == expected


def test_a_stream_of_a_model_that_is_not_there(server) -> None:
    with open_stream(server, "?model=nobody") as stream:
        assert "unknown model 'nobody'" in json.loads(stream.recv(timeout=30))["error"]
        with pytest.raises(ConnectionClosed):
            stream.recv(timeout=30)


def test_frames_past_the_limit_end_the_stream(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, limits={"body_bytes": 1000}) as server, open_stream(server) as stream:
        stream.send(bytes(1001))
        with pytest.raises(ConnectionClosed) as caught:
            stream.recv(timeout=30)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


def test_an_idle_stream_stays_open_and_a_left_one_costs_nothing(run_server, tiny_bundle, frames) -> None:
    """The bounds on idle and slow requests are not for streams."""
    limits = {"idle_s": 0.2, "read_s": 0.2}
    with run_server(tiny_bundle, limits=limits, inference={"faults": "*:delay=400ms"}) as server:
        with open_stream(server) as stream:
            assert "label" in ask(stream, frames[0])
            assert "label" in ask(stream, frames[1])
            stream.send(frames[2])
        admission = server.repository.get("tiny").admission
        while admission.in_flight:
            pass
