"""Reads the signature of an ONNX file, without the onnx package and without trusting the file.

An ONNX file is a Protocol Buffers message. Only the fields that a bundle's check needs are walked: inputs, outputs, and
whether any tensor, however deeply nested, keeps its data in another file (which a runtime would open for us).
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sensai_serve.errors import BundleError
from sensai_serve.input_spec import DYNAMIC, ONNX_TYPES, Datatype
from sensai_serve.protobuf import fields

FLOAT = 1
EXTERNAL = 1
_MAX_DEPTH = 64

# For each message: which field holds which message. Tensors are where external data can be.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


@dataclass(frozen=True)
class OnnxValue:
    """One input or output of a graph."""

    name: str
    element_type: int
    """ONNX's number of the type; 1 is FP32."""
    shape: tuple[int | None, ...] | None
    """Sizes, None for an axis of any size; None for an unknown shape."""

    def accepts(self, shape: Sequence[int], dtype: Datatype = "FP32") -> bool:
        """Whether this is [N, *shape] of a datatype with N free, and with every axis free that is `DYNAMIC`."""
        if ONNX_TYPES.get(self.element_type) != dtype or self.shape is None or len(self.shape) != len(shape) + 1:
            return False
        sizes = zip(self.shape[1:], shape, strict=True)
        return self.shape[0] is None and all(a is None or (a == b and b != DYNAMIC) for a, b in sizes)

    def __str__(self) -> str:
        shape = "of unknown shape" if self.shape is None else [("N" if d is None else d) for d in self.shape]
        kind = ONNX_TYPES.get(self.element_type, f"type {self.element_type}")
        return f"{self.name} {kind} {shape}".replace("'", "")


@dataclass(frozen=True)
class OnnxSignature:
    """Inputs and outputs of a network, and whether any of its weights lie in another file."""

    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    external_data: bool


def read_signature(data: bytes) -> OnnxSignature:
    """Read an ONNX file's signature.

    Raises:
        BundleError: the bytes are no ONNX model.
    """
    try:
        graphs = [body for number, body in _messages(memoryview(data)) if number == 7]
        if len(graphs) != 1:
            raise ValueError("no graph")
        fields = list(_messages(graphs[0]))
        initialised = {_name(body, 8) for number, body in fields if number == 5}
        inputs = tuple(v for number, body in fields if number == 11 and (v := _value(body)).name not in initialised)
        outputs = tuple(_value(body) for number, body in fields if number == 12)
        return OnnxSignature(inputs, outputs, "external" in _peculiarities(data))
    except (ValueError, IndexError, UnicodeDecodeError):
        raise BundleError("is not an ONNX model") from None


def has_loops(data: bytes) -> bool:
    """Whether a node of an ONNX file runs a graph of its own, as loops do: without one every run of it ends.

    What is no ONNX file has none.
    """
    try:
        return "graph" in _peculiarities(data)
    except (ValueError, IndexError):
        return False


def _peculiarities(data: bytes) -> set[str]:
    return set(_peculiar(memoryview(data), "model", 0))


def _peculiar(data: memoryview, message: str, depth: int) -> Iterator[Literal["external", "graph"]]:
    """What a message holds, however deeply: tensors whose data is elsewhere, graphs of nodes."""
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if message == "tensor":
        if any(number == 13 or (number == 14 and value == EXTERNAL) for number, value, _ in fields(data)):
            yield "external"
        return
    children = _CHILDREN[message]
    for number, body in _messages(data):
        if (child := children.get(number)) is not None:
            if message == "attribute" and child == "graph":
                yield "graph"
            yield from _peculiar(body, child, depth + 1)


def _value(data: memoryview) -> OnnxValue:
    element_type, shape = 0, None
    for number, body in _messages(data):
        if number != 2:  # type
            continue
        for kind, tensor in _messages(body):
            if kind != 1:  # tensor_type
                continue
            for field, content, _ in fields(tensor):
                if field == 1 and isinstance(content, int):
                    element_type = content
                elif field == 2 and isinstance(content, memoryview):
                    shape = tuple(_dimension(d) for n, d in _messages(content) if n == 1)
    return OnnxValue(_name(data, 1), element_type, shape)


def _dimension(data: memoryview) -> int | None:
    return next((v for number, v, _ in fields(data) if number == 1 and isinstance(v, int)), None)


def _name(data: memoryview, number: int) -> str:
    return next((bytes(body).decode() for n, body in _messages(data) if n == number), "")


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    return ((number, value) for number, value, _ in fields(data) if isinstance(value, memoryview))
