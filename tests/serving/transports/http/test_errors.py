"""Everything that is wrong with a request over HTTP is answered ``{"error": "one line"}`` with a status that fits."""

from __future__ import annotations

import codecs
import gzip
import http.client
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sensai_serve import errors
from serving.transports.http.asgi.compression import MAX_MEMBERS, inflate
from serving.v2.body_bound import configured
from serving.v2.status import status_of

INFER = "/v2/models/tiny/infer"
ZEROS = bytes(4 * 3 * 8 * 8)
LIMIT = 4096


@pytest.fixture(scope="module")
def limited(run_server, tiny_bundle, make_bundle) -> Iterator[Any]:
    """Two models, small limits."""
    numbers = make_bundle(name="numbers", n_classes=3, shape=(4,))
    with run_server(tiny_bundle, numbers, limits={"body_bytes": LIMIT, "image_pixels": 10_000}) as server:
        yield server


def ask(
    server: Any, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def error_of(server: Any, status: int, *request: Any, **more: Any) -> str:
    """The message of an error, its status and form checked."""
    got, headers, body = ask(server, *request, **more)
    content = json.loads(body)
    assert (got, list(content)) == (status, ["error"]), content
    assert headers["content-type"] == "application/json"
    message = content["error"]
    assert isinstance(message, str)
    assert message
    assert not any(word in message for word in ("\n", "Traceback", "/work", "/home", "/tmp", ".py"))
    return message


def request(tail: bytes = ZEROS, **changes: Any) -> tuple[bytes, int]:
    """A binary request's body, and the length of its header."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    tensor |= {"parameters": {"binary_data_size": len(tail)}} | changes
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + tail, len(header)


def test_the_request_that_the_others_are_broken_from_is_good(limited) -> None:
    body, length = request()
    status, headers, reply = ask(limited, "POST", INFER, body, {"Inference-Header-Content-Length": str(length)})
    assert status == 200
    assert json.loads(reply)["model_name"] == "tiny"
    assert "inference-header-content-length" not in headers  # nothing binary was asked for


@pytest.mark.parametrize("path", ["/v2/models/nobody/infer", "/v2/models/tiny/versions/7/infer", "/v2/models/nobody"])
def test_unknown_model(limited, path: str) -> None:
    method = "POST" if path.endswith("infer") else "GET"
    assert "expected" in error_of(limited, 404, method, path, b"{}" if method == "POST" else None)


def test_unknown_model_is_not_ready(limited) -> None:
    assert "nobody" in error_of(limited, 400, "GET", "/v2/models/nobody/ready")


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("-1", "expected a number of bytes"),
        ("+5", "expected a number of bytes"),
        ("1e3", "expected a number of bytes"),
        ("", "expected a number of bytes"),
        ("9" * 30, "expected a number of bytes"),
        ("3000", "expected 0 to"),
        ("999999999999999999", "expected 0 to"),
        ("10", "not JSON"),
        ("0", "bytes, expected 768 for shape"),
        (None, "not JSON"),
    ],
)
def test_broken_header_length(limited, length: str | None, message: str) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    assert message in error_of(limited, 400, "POST", INFER, request()[0], headers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "image"}, "input name is 'image', expected 'input'"),
        ({"shape": [1, 8, 8, 3]}, "shape is [1, 8, 8, 3], expected [N, 3, 8, 8]"),
        ({"datatype": "UINT8"}, "datatype is 'UINT8', expected 'FP32'"),
        ({"tail": ZEROS[1:]}, "767 bytes, expected 768"),
        ({"parameters": {"binary_data_size": 767}}, "binary_data_size is 767, expected 768"),
        ({"parameters": {}}, "has no values, expected one of data, binary_data_size and shared_memory_region"),
        ({"parameters": {}, "data": [0] * 192}, "768 bytes after the JSON, expected none"),
    ],
)
def test_input_that_does_not_fit(limited, changes: dict[str, Any], message: str) -> None:
    body, length = request(**changes)
    headers = {"Inference-Header-Content-Length": str(length)}
    assert message in error_of(limited, 400, "POST", INFER, body, headers)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"null", b"[" * 3000, b'{"inputs": NaN}'])
@pytest.mark.parametrize("path", [INFER, "/v1/predict?model=tiny"])
def test_json_that_is_not(limited, body: bytes, path: str) -> None:
    message = error_of(limited, 400, "POST", path, body, {"Content-Type": "application/json"})
    assert "the request is" in message


@pytest.mark.parametrize("path", [INFER, "/v1/predict?model=tiny"])
@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
def test_body_past_the_limit(limited, path: str, encoding: str | None) -> None:
    body = b" " * (LIMIT + 1)
    compress = {None: bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    headers = {"Content-Encoding": encoding} if encoding else {}
    assert str(LIMIT) in error_of(limited, 413, "POST", path, compress(body), headers)


def test_chunked_body_past_the_limit(limited) -> None:
    chunks = (b" " * 1000 for _ in range(10))
    assert str(LIMIT) in error_of(limited, 413, "POST", INFER, chunks)


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("gzip", b"plain", "not valid gzip data"),
        ("deflate", b"plain", "not valid deflate data"),
        ("gzip", gzip.compress(b"{}" * 500, mtime=0)[:-9], "gzip data is incomplete"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", "not valid gzip data"),
        ("deflate", zlib.compress(b"{}") + b"more", "4 bytes follow"),
        ("gzip, gzip", gzip.compress(b"{}", mtime=0), "not valid gzip data"),
    ],
)
def test_damaged_compression(limited, encoding: str, body: bytes, message: str) -> None:
    assert message in error_of(limited, 400, "POST", INFER, body, {"Content-Encoding": encoding})


@pytest.mark.parametrize("encoding", ["br", "gzip, br", "gzip,gzip,gzip,gzip,gzip"])
def test_compression_that_is_not_done(limited, encoding: str) -> None:
    message = error_of(limited, 501, "POST", INFER, b"{}", {"Content-Encoding": encoding})
    assert message == f"Content-Encoding is {encoding!r}, expected gzip, deflate or none"


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def members(body: bytes) -> bytes:
    return b"".join(gzip.compress(body[at : at + 7], mtime=0) for at in range(0, len(body), 7))


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", members),
        ("gzip", lambda body: gzip.compress(body) + bytes(512)),
        ("gzip, identity", gzip.compress),
        ("identity", bytes),
        ("deflate, GZIP", lambda body: gzip.compress(zlib.compress(body))),
        ("deflate", raw_deflate),
        ("x-gzip", gzip.compress),
    ],
)
def test_compression_as_clients_send_it(limited, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    body = b'{"inputs": 3}' + b" " * 200
    message = error_of(limited, 400, "POST", INFER, compress(body), {"Content-Encoding": encoding})
    assert message == "inputs is 3, expected a list of one object, the input 'input'"


def test_members_without_end_are_refused() -> None:
    with pytest.raises(errors.RequestError, match=f"more than {MAX_MEMBERS} gzip members"):
        inflate(gzip.compress(b"", mtime=0) * (MAX_MEMBERS + 1), b"gzip", configured(LIMIT))


@pytest.mark.parametrize("path", [INFER, "/v1/predict?model=tiny", "/v2/systemsharedmemory/region/a/register"])
def test_a_byte_order_mark_is_skipped(limited, path: str) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"inputs": "3"}'
    marked = error_of(limited, 400, "POST", path, codecs.BOM_UTF8 + body, headers)
    assert marked == error_of(limited, 400, "POST", path, body, headers)
    assert "JSON" not in marked


@pytest.mark.parametrize(
    ("status", "method", "path"),
    [
        (404, "GET", "/v1"),
        (404, "GET", "/v3"),
        (404, "GET", "/v2/"),
        (404, "POST", "/v2/models/tiny/versions/1/2/infer"),
        (405, "GET", "/v1/predict"),
        (405, "GET", INFER),
        (405, "PUT", "/v2/models/tiny/versions/1/infer"),
        (405, "POST", "/v2/models/tiny"),
        (405, "DELETE", "/v2"),
        (422, "POST", "/v1/predict?model=tiny&wait=forever"),
        (422, "POST", "/v1/predict?model=tiny&timeout_ms=-1"),
        (422, "POST", "/v1/predict?model=tiny&timeout_ms=inf"),
        (422, "POST", "/v1/predict?model=tiny&timeout_ms=nan"),
    ],
)
def test_errors_of_the_framework_have_the_same_form(limited, status: int, method: str, path: str) -> None:
    error_of(limited, status, method, path)


def test_what_nobody_foresaw_says_nothing(limited, monkeypatch, caplog) -> None:
    """A bug in the server: the client learns that it was one, the log learns which."""
    gateway = limited.repository.get("tiny")

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret in /etc/passwd")

    monkeypatch.setattr(gateway, "begin", broken)
    body, length = request()
    headers = {"Inference-Header-Content-Length": str(length)}
    assert error_of(limited, 500, "POST", INFER, body, headers) == "internal error"
    image = json.dumps({"inputs": np.zeros((3, 8, 8)).tolist()}).encode()
    path, kind = "/v1/predict?model=tiny", {"Content-Type": "application/json"}
    assert error_of(limited, 500, "POST", path, image, kind) == "internal error"
    assert "secret" in caplog.text


def test_too_many_requests_are_told_when_to_come_back(run_server, tiny_bundle) -> None:
    body, length = request()
    headers = {"Inference-Header-Content-Length": str(length)}
    with run_server(tiny_bundle, limits={"in_flight": 1}, inference={"faults": "*:delay=100ms"}) as slow:
        refused: list[tuple[int, dict[str, str], bytes]] = []
        while not refused:
            with ThreadPoolExecutor(4) as pool:
                replies = list(pool.map(lambda _: ask(slow, "POST", INFER, body, headers), range(4)))
            assert {status for status, _, _ in replies} <= {200, 503}
            refused = [reply for reply in replies if reply[0] == 503]
        for _, given, content in refused:
            assert int(given["retry-after"]) >= 1
            assert "in flight" in json.loads(content)["error"]


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(limited, caplog) -> None:
    with socket.create_connection((limited.host, limited.port)) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc".encode())
    body, length = request()
    status, _, _ = ask(limited, "POST", INFER, body, {"Inference-Header-Content-Length": str(length)})
    assert status == 200
    assert "failed" not in caplog.text


def test_every_error_of_ours_has_a_status() -> None:
    """A new error must be thought about: 4xx where the client can mend it, 503 where waiting can, 500 where neither."""

    def tree(kind: type[errors.SensaiError]) -> Iterator[type[errors.SensaiError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from tree(below)

    statuses = {
        kind.__name__: status_of(kind("x")).http
        for kind in tree(errors.SensaiError)
        if kind.__module__ == errors.__name__
    }
    assert {status for name, status in statuses.items() if issubclass(getattr(errors, name), errors.InputError)} <= {
        400,
        401,
        403,
        404,
        413,
        501,
    }
    assert {name: status for name, status in statuses.items() if status != 400} == {
        "UnauthenticatedError": 401,
        "ForbiddenError": 403,
        "UnknownModelError": 404,
        "UnknownRegionError": 404,
        "UnsupportedError": 501,
        "TooLargeError": 413,
        "UncoveredError": 503,
        "OverloadedError": 503,
        "NotReadyError": 503,
        "NotLoadedError": 503,
        "ControlOffError": 503,
        "SensaiError": 500,
        "ServingError": 500,
        "WorkerError": 500,
        "WorkError": 500,
    }
