"""A body is as long as the model's inputs can make it, not as long as the server could hold."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.preprocess import InputSpec
from serving.v2.body_bound import AROUND, JSON_NUMBER, as_fp32, as_json, as_protobuf, configured

INFER = "/v2/models/tiny/infer"
NUMBERS = 3 * 8 * 8
BATCH = 4
JSON = JSON_NUMBER * BATCH * NUMBERS + AROUND


@pytest.fixture(scope="module")
def server(run_server, tiny_bundle) -> Iterator[Any]:
    with run_server(tiny_bundle, limits={"batch": BATCH}) as server:
        yield server


def ask(server: Any, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read()).get("error", "")
    finally:
        connection.close()


def as_binary(size: int) -> tuple[bytes, dict[str, str]]:
    """A binary request whose JSON is padded so that the whole has this size."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [BATCH, 3, 8, 8]}
    data = bytes(4 * BATCH * NUMBERS)
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode()
    head = head.ljust(size - len(data))
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def as_text(size: int) -> bytes:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * NUMBERS}
    return json.dumps({"inputs": [tensor]}).encode().ljust(size)


def test_json_of_the_largest_length_is_answered_and_of_one_byte_more_is_not(server) -> None:
    assert ask(server, INFER, as_text(JSON), {}) == (200, "")
    status, error = ask(server, INFER, as_text(JSON + 1), {})
    assert (status, error) == (
        413,
        f"the body has {JSON + 1} bytes, expected at most {JSON} "
        f"(4 inputs of [3, 8, 8] numbers, 64 bytes each, and 65536 bytes around them)",
    )


def test_numbers_after_json_have_four_bytes(server) -> None:
    """However long the client says that its JSON is."""
    most = JSON + 4 * BATCH * NUMBERS + AROUND
    body, headers = as_binary(JSON + 4 * BATCH * NUMBERS)
    assert ask(server, INFER, body, headers) == (200, "")
    body, headers = as_binary(most + 1)
    status, error = ask(server, INFER, body, headers)
    assert status == 413
    assert f"expected at most {most} (4 inputs of [3, 8, 8] numbers, 4 bytes each" in error
    short, headers = as_binary(4 * BATCH * NUMBERS + 300)
    status, error = ask(server, INFER, short + bytes(AROUND + 1), headers)
    assert status == 413
    assert "numbers, 4 bytes each, and 65836 bytes around them" in error


@pytest.mark.parametrize("path", [INFER, "/v1/predict?model=tiny"])
def test_what_is_small_as_sent_and_large_as_inflated_ends_early(server, path: str) -> None:
    """No more is inflated than shows that it is too large."""
    most = JSON if path == INFER else JSON_NUMBER * NUMBERS + AROUND
    bomb = gzip.compress(bytes(30_000_000))
    assert len(bomb) < most
    status, error = ask(server, path, bomb, {"Content-Encoding": "gzip", "Content-Type": "application/json"})
    assert status == 413
    assert f"the body inflates to {most + 1} bytes or more, expected at most {most} (" in error


def test_one_input_for_v1(server) -> None:
    numbers = np.zeros(NUMBERS, np.float32).tobytes()
    fp32, form = {"Content-Type": "application/x-fp32"}, "/v1/predict?model=tiny"
    assert ask(server, form, numbers, fp32) == (200, "")
    assert ask(server, form, numbers + b"0000", fp32)[0] == 400  # which says how many are expected
    status, error = ask(server, form, numbers + bytes(AROUND + 1), fp32)
    assert status == 413
    assert "(one input of [3, 8, 8] numbers, 4 bytes each" in error
    picture = {"Content-Type": "image/png"}
    assert ask(server, form, bytes(10 * AROUND), picture)[0] == 400  # no image, but an image might be as long


def test_the_configured_limit_is_the_upper_end(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, limits={"body_bytes": 9000}) as server:
        status, error = ask(server, INFER, as_text(9001), {})
    assert (status, error) == (413, "the body has 9001 bytes, expected at most 9000 (limits.body_bytes)")


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@given(shapes, st.integers(1, 5), st.data())
def test_every_way_of_writing_a_request_fits(shape: tuple[int, ...], batch: int, data: st.DataObject) -> None:
    spec = InputSpec(shape)
    values = data.draw(st.sampled_from([-1.1754943508222875e-38, -1.7976931348623157e308, 0.1, 1]))
    nested = np.full((batch, *shape), values).tolist()
    indent = data.draw(st.sampled_from([None, 2, 4]))
    tensor = {"name": "input", "datatype": "FP32", "shape": [batch, *shape], "data": nested}
    text = json.dumps({"id": "x" * 1000, "inputs": [tensor]}, indent=indent)
    assert len(text) <= as_json([spec], batch).most
    flat = json.dumps({"inputs": [tensor | {"data": np.ravel(nested).tolist()}]}, indent=indent)
    assert len(flat) <= as_json([spec], batch).most
    assert 4 * spec.elements < as_fp32([spec]).most < as_json([spec], 1).most


def test_a_message_may_be_for_any_model() -> None:
    small, large = InputSpec((3, 8, 8)), InputSpec((3, 32, 32))
    assert as_protobuf([([large], 2), ([small], 64)], 1 << 30).most == as_protobuf([([small], 64)], 1 << 30).most
    assert as_protobuf([([large], 64), ([small], 64)], 1000) == configured(1000)
    assert as_protobuf([], 1000) == configured(1000)
