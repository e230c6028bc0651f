"""The contract over HTTP: the same calls to a real Triton and to this server, compared call by call.

Where the two differ on purpose, DIFFERENT says how and why.
"""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from typing import Any

import numpy as np
import pytest


def _ask(address: str, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def http_outcome(address: str, method: str, path: str, body: Any = None, headers: Any = None) -> Any:
    """The status, and the form of what comes: keys of objects, names, datatypes and sizes of outputs."""
    status, given, content = _ask(address, method, path, body, headers)
    if status != 200:
        error = json.loads(content)
        assert list(error) == ["error"]
        assert isinstance(error["error"], str)
        return status
    if given["Content-Encoding"] == "gzip":
        content = gzip.decompress(content)
    length = given["Inference-Header-Content-Length"]
    header = content if length is None else content[: int(length)]
    reply = json.loads(header) if header else None
    if isinstance(reply, dict) and "outputs" in reply and "model_name" in reply:
        return status, length is not None, reply.get("id"), [_output(output) for output in reply["outputs"]]
    return status, _form(reply)


def _output(output: dict[str, Any]) -> Any:
    parameters = output.get("parameters", {})
    return output["name"], output["datatype"], int(np.prod(output["shape"])), list(parameters), "data" in output


def _form(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_form(item) for item in value[:1]]
    return type(value).__name__


ZEROS = bytes(768)
NUMBERS = {"parameters": None, "data": [0.0] * 192}
INFER = "/v2/models/tiny/infer"


def infer(tensor: Any = None, top: Any = None, tail: bytes = ZEROS, path: str = INFER, **more: Any) -> tuple[Any, ...]:
    described = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    described |= {"parameters": {"binary_data_size": len(tail)}} | (tensor or {})
    described = {key: value for key, value in described.items() if value is not None}
    header = json.dumps({"inputs": [described], **(top or {})}).encode()
    headers = {"Inference-Header-Content-Length": more.get("length", str(len(header)))}
    body = more.get("compress", bytes)(header + tail)
    return "POST", path, body, headers | more.get("headers", {})


def output(name: str = "scores", **parameters: Any) -> dict[str, Any]:
    return {"outputs": [{"name": name, "parameters": parameters}]}


def plain(content: Any) -> tuple[Any, ...]:
    return "POST", INFER, content if isinstance(content, bytes) else json.dumps(content)


HTTP: dict[str, tuple[Any, ...]] = {
    "live": ("GET", "/v2/health/live"),
    "ready": ("GET", "/v2/health/ready"),
    "root": ("GET", "/"),
    "slash": ("GET", "/v2/"),
    "server": ("GET", "/v2"),
    "model": ("GET", "/v2/models/tiny"),
    "model of a version": ("GET", "/v2/models/tiny/versions/1"),
    "unknown version": ("GET", "/v2/models/tiny/versions/2"),
    "unknown model": ("GET", "/v2/models/nobody"),
    "unknown model ready": ("GET", "/v2/models/nobody/ready"),
    "unknown model config": ("GET", "/v2/models/nobody/config"),
    "statistics": ("GET", "/v2/models/tiny/stats"),
    "all statistics": ("GET", "/v2/models/stats"),
    "unknown statistics": ("GET", "/v2/models/nobody/stats"),
    "unknown version statistics": ("GET", "/v2/models/tiny/versions/9/stats"),
    "wrong method": ("POST", "/v2/models/tiny", b""),
    "infer by get": ("GET", INFER),
    "index": ("POST", "/v2/repository/index", b""),
    "index of ready": ("POST", "/v2/repository/index", b'{"ready": true}'),
    "load": ("POST", "/v2/repository/models/tiny/load", b"{}"),
    "unload": ("POST", "/v2/repository/models/tiny/unload", b"{}"),
    "trace": ("GET", "/v2/trace/setting"),
    "trace of a model": ("GET", "/v2/models/tiny/trace/setting"),
    "trace of nobody": ("GET", "/v2/models/nobody/trace/setting"),
    "change trace": ("POST", "/v2/trace/setting", b'{"trace_rate": "7"}'),
    "clear trace": ("POST", "/v2/trace/setting", b'{"trace_rate": null}'),
    "wrong trace": ("POST", "/v2/trace/setting", b'{"trace_rate": "x"}'),
    "trace file": ("POST", "/v2/trace/setting", b'{"trace_file": "x"}'),
    "log": ("GET", "/v2/logging"),
    "change log": ("POST", "/v2/logging", b'{"log_info": true}'),
    "log file": ("POST", "/v2/logging", b'{"log_file": "x"}'),
    "regions": ("GET", "/v2/systemsharedmemory/status"),
    "unknown region": ("GET", "/v2/systemsharedmemory/region/x/status"),
    "region without a key": ("POST", "/v2/systemsharedmemory/region/x/register", b'{"byte_size": 8}'),
    "region that is not": ("POST", "/v2/systemsharedmemory/region/x/register", b'{"key": "/none", "byte_size": 8}'),
    "forget a region": ("POST", "/v2/systemsharedmemory/region/x/unregister", b""),
    "forget all regions": ("POST", "/v2/systemsharedmemory/unregister", b""),
    "cuda regions": ("GET", "/v2/cudasharedmemory/status"),
    "infer": infer(),
    "infer numbers": infer(NUMBERS, tail=b""),
    "infer nested numbers": infer({"parameters": None, "data": np.zeros((1, 3, 8, 8)).tolist()}, tail=b""),
    "binary reply": infer(top={"parameters": {"binary_data_output": True}}),
    "one output": infer(top={"id": "7", **output("class_id", binary_data=True)}),
    "no outputs": infer(top={"outputs": []}),
    "output twice": infer(top={"outputs": [{"name": "votes"}] * 2}),
    "classes": infer(top=output(classification=2)),
    "all classes": infer(top=output(classification=20)),
    "no classes": infer(top=output(classification=0)),
    "classes of votes": infer(top=output("votes", classification=2)),
    "classes in bytes": infer(top=output(classification=2, binary_data=True)),
    "raw": ("POST", INFER, ZEROS, {"Inference-Header-Content-Length": "0"}),
    "gzip": infer(compress=gzip.compress, headers={"Content-Encoding": "gzip"}),
    "deflate": infer(compress=zlib.compress, headers={"Content-Encoding": "deflate"}),
    "brotli": infer(headers={"Content-Encoding": "br"}),
    "unknown model infer": infer(path="/v2/models/nobody/infer"),
    "unknown version infer": infer(path="/v2/models/tiny/versions/2/infer"),
    "wrong name": infer({"name": "x"}),
    "wrong shape": infer({"shape": [1, 8, 8, 3]}),
    "wrong rank": infer({"shape": [3, 8, 8]}),
    "batch of none": infer({"shape": [0, 3, 8, 8]}, tail=b""),
    "batch of 65": infer({"shape": [65, 3, 8, 8]}, tail=bytes(65 * 768)),
    "wrong datatype": infer({"datatype": "FP64"}, tail=bytes(1536)),
    "unknown datatype": infer({"datatype": "X"}),
    "too few bytes": infer(tail=ZEROS[1:]),
    "too many bytes": infer(tail=ZEROS + b"x"),
    "smaller size": infer({"parameters": {"binary_data_size": 700}}),
    "larger size": infer({"parameters": {"binary_data_size": 800}}),
    "no data": infer({"parameters": None}),
    "both data": infer({"data": [0.0] * 192}),
    "unknown output": infer(top=output("x")),
    "unknown region in": infer({"parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 8}}, tail=b""),
    "unknown region out": infer(top=output(shared_memory_region="x", shared_memory_byte_size=8)),
    "negative length": infer(length="-1"),
    "length past the body": infer(length="99999"),
    "two inputs": plain({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], **NUMBERS}] * 2}),
    "empty": plain(b""),
    "object as a parameter": infer(top={"parameters": {"x": {}}}),
    # Wrong JSON: Triton calls most of it its own fault.
    "no json": plain(b"{"),
    "json in a wrong place": infer(length="5"),
    "null": plain(None),
    "no inputs": plain({}),
    "id of a wrong type": infer(top={"id": 5}),
    "negative batch": infer({"shape": [-1, 3, 8, 8]}),
    "size of a wrong type": infer({"parameters": {"binary_data_size": "768"}}),
    "too few numbers": infer({"parameters": None, "data": [0.0] * 191}, tail=b""),
    "texts": infer({"parameters": None, "data": ["1"] * 192}, tail=b""),
    "negative classes": infer(top=output(classification=-1)),
    "negative timeout": infer(top={"parameters": {"timeout": -1}}),
    "binary_data of a wrong type": infer(top=output(binary_data="x")),
    "parameters of a wrong type": infer(top={"parameters": []}),
}

MENDABLE = "the client can mend it: 400, where Triton says 500"
BODY = "the protocol has this body and KServe's client reads it; Triton sends none and its client reads none"
DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    **dict.fromkeys(
        ("no json", "json in a wrong place", "null", "no inputs", "id of a wrong type", "negative batch",
         "size of a wrong type", "too few numbers", "texts", "negative classes", "negative timeout",
         "binary_data of a wrong type", "parameters of a wrong type", "region that is not"),
        (500, 400, MENDABLE),
    ),
    "live": ((200, "NoneType"), (200, {"live": "bool"}), BODY),
    "ready": ((200, "NoneType"), (200, {"ready": "bool"}), BODY),
    "cuda regions": ((200, []), 501, "CUDA memory is refused at once, not when it is used"),
}  # fmt: skip


@pytest.mark.parametrize("name", HTTP)
def test_http(triton, server, name: str) -> None:
    theirs, here = (http_outcome(address, *HTTP[name]) for address in (triton.http, server.address))
    if name in DIFFERENT:
        assert (theirs, here) == DIFFERENT[name][:2]
    elif name in ("server", "model", "model of a version", "statistics", "all statistics", "index", "index of ready"):
        assert here[0] == theirs[0] == 200
        assert _missing(theirs[1], here[1]) == []
    else:
        assert here == theirs


def _missing(theirs: Any, here: Any, path: str = "") -> list[str]:
    """What Triton's form has and ours has not."""
    if isinstance(theirs, dict) and isinstance(here, dict):
        return [found for key in theirs for found in (
            _missing(theirs[key], here[key], f"{path}.{key}") if key in here else [f"{path}.{key}"]
        )]  # fmt: skip
    if isinstance(theirs, list) and isinstance(here, list):
        return _missing(theirs[0], here[0], f"{path}[]") if theirs and here else []
    return [] if theirs == here else [f"{path}: {here}, expected {theirs}"]
