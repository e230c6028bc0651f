"""Codecs of requests and replies: Open Inference Protocol, binary and JSON, and plain tensors.

A codec is chosen once per server. Requests are built before anything is timed and replies are read after, so a client
sends ready bytes and takes bytes back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import ServingError
from sensai_serve.preprocess import Floats

OUTPUTS = ("scores", "class_id")
_DTYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}


@dataclass(frozen=True)
class ParsedReply:
    """The content of a reply about one input."""

    class_id: int
    scores: Floats | None = None
    """FP32 [C]; None where the reply has none."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Reply parameters, in which our server says how it merged."""


class Codec(Protocol):
    """Encodes requests to one server, and decodes its replies."""

    def request(self, inputs: Floats) -> bytes:
        """The bytes of the whole HTTP request for inputs FP32 [1, *shape]."""

    def answer(self, headers: bytes, body: bytes) -> ParsedReply:
        """Parse a reply with status 200; header names are in lower case."""


def http_request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The bytes of a POST request on a connection that stays open."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class V2Binary:
    """Open Inference Protocol v2 with the binary tensor extension."""

    model: str
    input: str = "input"
    outputs: tuple[str, ...] = OUTPUTS
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Request parameters, say ``{"wait": "all"}``."""

    def request(self, inputs: Floats) -> bytes:
        """See `Codec`."""
        data = inputs.astype("<f4").tobytes()
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": self.input,
                        "datatype": "FP32",
                        "shape": list(inputs.shape),
                        "parameters": {"binary_data_size": len(data)},
                    }
                ],
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in self.outputs],
                **({"parameters": dict(self.parameters)} if self.parameters else {}),
            },
            separators=(",", ":"),
        ).encode()
        # Padded, as JSON may be, so that the tensor can begin at an address that a runtime takes without a copy.
        header += b" " * (-len(header) % 8)
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(header))}
        return http_request(_infer_path(self.model), header + data, headers)

    def answer(self, headers: bytes, body: bytes) -> ParsedReply:
        """See `Codec`."""
        length = header_value(headers, b"inference-header-content-length")
        at = len(body) if length is None else int(length)
        reply, outputs = json.loads(body[:at]), {}
        for output in reply["outputs"]:
            size = output["parameters"]["binary_data_size"]
            outputs[output["name"]] = np.frombuffer(body[at : at + size], _DTYPES[output["datatype"]])
            at += size
        return _answer({name: outputs[name] for name in self.outputs}, reply.get("parameters", {}))


@dataclass(frozen=True)
class V2Json:
    """Open Inference Protocol v2, all numbers as JSON."""

    model: str
    input: str = "input"
    outputs: tuple[str, ...] = OUTPUTS

    def request(self, inputs: Floats) -> bytes:
        """See `Codec`."""
        tensor = {"name": self.input, "datatype": "FP32", "shape": list(inputs.shape), "data": _numbers(inputs)}
        body: dict[str, Any] = {"inputs": [tensor]}
        if self.outputs:
            body["outputs"] = [{"name": name} for name in self.outputs]
        return http_request(
            _infer_path(self.model),
            json.dumps(body, separators=(",", ":")).encode(),
            {"content-type": "application/json"},
        )

    def answer(self, headers: bytes, body: bytes) -> ParsedReply:
        """See `Codec`."""
        reply = json.loads(body)
        outputs = {output["name"]: np.array(output["data"]).reshape(-1) for output in reply["outputs"]}
        return _answer(outputs, reply.get("parameters") or {})


@dataclass(frozen=True)
class Raw:
    """The tensor's bytes in, the bytes of FP32 scores [C] out: a route that users of another server would write."""

    path: str
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/octet-stream"})

    def request(self, inputs: Floats) -> bytes:
        """See `Codec`."""
        return http_request(self.path, inputs.astype("<f4").tobytes(), self.headers)

    def answer(self, headers: bytes, body: bytes) -> ParsedReply:
        """See `Codec`."""
        return _answer({"scores": np.frombuffer(body, np.float32)}, {})


@dataclass(frozen=True)
class PlainJson:
    """``{"data": [...]}`` in, ``{"scores": [...]}`` out."""

    path: str

    def request(self, inputs: Floats) -> bytes:
        """See `Codec`."""
        body = json.dumps({"data": _numbers(inputs)}, separators=(",", ":")).encode()
        return http_request(self.path, body, {"content-type": "application/json"})

    def answer(self, headers: bytes, body: bytes) -> ParsedReply:
        """See `Codec`."""
        return _answer({"scores": np.array(json.loads(body)["scores"], np.float32)}, {})


@dataclass(frozen=True)
class Empty:
    """The tensor's bytes in, any reply out: for a server that computes nothing."""

    path: str = "/"

    def request(self, inputs: Floats) -> bytes:
        """See `Codec`."""
        return http_request(self.path, inputs.astype("<f4").tobytes(), {})

    def answer(self, headers: bytes, body: bytes) -> ParsedReply:
        """See `Codec`."""
        return ParsedReply(-1)


def header_value(headers: bytes, name: bytes) -> bytes | None:
    """The value of a header, None where it is not there; `headers` and `name` in lower case."""
    at = headers.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    start = at + len(name) + 3
    end = headers.find(b"\r\n", start)
    return headers[start : end if end >= 0 else len(headers)].strip()


def workers_of(answer: ParsedReply, key: str) -> tuple[int, ...]:
    """Worker ids out of a reply's parameter `key`, ``arrived`` or ``missing``."""
    return tuple(int(worker) for worker in str(answer.parameters.get(key, "")).split(",") if worker)


def _infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def _numbers(inputs: Floats) -> list[float]:
    # No more digits than FP32 has: a client that knows its trade sends 0.1, not 0.10000000149011612.
    return [float(str(value)) for value in inputs.reshape(-1)]


def _answer(outputs: Mapping[str, npt.NDArray[Any]], parameters: Mapping[str, Any]) -> ParsedReply:
    """One input's answer. Outputs without a class are scores, side by side where there are several."""
    if not outputs:
        raise ServingError("a reply holds no outputs, expected scores")
    scores = outputs.get("scores")
    if scores is None and "class_id" not in outputs:
        scores = np.concatenate(list(outputs.values()))
    if scores is None:
        return ParsedReply(int(outputs["class_id"][0]), None, parameters)
    class_id = int(outputs["class_id"][0]) if "class_id" in outputs else int(np.argmax(scores))
    return ParsedReply(class_id, np.asarray(scores, np.float32), parameters)
