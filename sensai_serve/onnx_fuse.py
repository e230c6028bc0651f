"""Fuses several small ONNX networks of one input into one network, which takes one call to run.

Protocol Buffers messages are copied field by field, and only names are written anew. What this does not know how to
rename, it refuses; the caller then runs the networks one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from sensai_serve.onnx_signature import FLOAT
from sensai_serve.protobuf import bytes_field, fields, number_field

_GRAPH, _OPSETS, _TRAINING, _FUNCTIONS = 7, 8, 20, 25  # of a model
_NODE, _INITIALISER, _SPARSE, _INPUT, _OUTPUT = 1, 5, 15, 11, 12  # of a graph
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _ATTRIBUTE = 1, 2, 3, 5
_SUBGRAPHS = (6, 11)  # of an attribute
_INT = 2  # an attribute's type
_TENSOR_NAME, _VALUE_NAME = 8, 1
_EXTERNAL = 13  # of a tensor
OUTPUT = "scores"


class CannotFuseError(Exception):
    """The networks use something that cannot be renamed here; the message says what."""


def fuse(networks: Sequence[bytes], input_name: str) -> bytes:
    """Make one network of several.

    Args:
        networks: ONNX files, each with this one input and the output ``scores`` FP32 [N, k], of the same operator sets.
        input_name: name of the input that they share.

    Raises:
        CannotFuseError: they differ in their operator sets or inputs, or hold subgraphs, functions, sparse or external
            tensors.

    Returns:
        An ONNX file with the output ``scores`` FP32 [N, sum of k]: theirs side by side, in order.
    """
    try:
        models = [list(fields(memoryview(network))) for network in networks]
        opsets = [sorted(bytes(raw) for number, _, raw in model if number == _OPSETS) for model in models]
        if any(other != opsets[0] for other in opsets):
            raise CannotFuseError("different operator sets")
        if any(number in (_TRAINING, _FUNCTIONS) for model in models for number, _, _ in model):
            raise CannotFuseError("functions or training graphs")
        graphs = [[value for number, value, _ in model if number == _GRAPH] for model in models]
        body = b"".join(
            _renamed(graph, f"{k}/", input_name, first=k == 0)
            for k, found in enumerate(graphs)
            for graph in found
            if isinstance(graph, memoryview)
        )
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise CannotFuseError(f"no ONNX model ({error})") from None
    joined = _concat([f"{k}/{OUTPUT}" for k in range(len(networks))])
    head = b"".join(bytes(raw) for number, _, raw in models[0] if number != _GRAPH)
    return head + bytes_field(_GRAPH, bytes_field(2, b"fused") + body + joined)


def _renamed(graph: memoryview, prefix: str, input_name: str, *, first: bool) -> bytes:
    """A graph's nodes and initialisers, and its input where it is the first, names prefixed."""
    parts = list(fields(graph))
    constants = {_name(value, _TENSOR_NAME) for number, value, _ in parts if number == _INITIALISER}
    kept = []
    for number, value, raw in parts:
        if number == _SPARSE:
            raise CannotFuseError("sparse tensors")
        if not isinstance(value, memoryview):
            continue
        if number == _NODE:
            kept.append(bytes_field(_NODE, _node(value, prefix, input_name)))
        elif number == _INITIALISER:
            if any(field == _EXTERNAL for field, _, _ in fields(value)):
                raise CannotFuseError("external data")
            kept.append(bytes_field(_INITIALISER, _with_name(value, _TENSOR_NAME, prefix, input_name)))
        elif number == _OUTPUT and _name(value, _VALUE_NAME) != OUTPUT:
            raise CannotFuseError(f"an output {_name(value, _VALUE_NAME)}")
        elif number == _INPUT and (name := _name(value, _VALUE_NAME)) not in constants:
            if name != input_name:
                raise CannotFuseError(f"an input {name}")
            kept += [bytes(raw)] if first else []
    return b"".join(kept)


def _concat(outputs: Sequence[str]) -> bytes:
    """The node that puts all scores side by side, and the output that it makes."""
    axis = bytes_field(1, b"axis") + number_field(3, 1) + number_field(20, _INT)
    names = b"".join(bytes_field(_NODE_INPUT, name.encode()) for name in outputs)
    node = (
        names + bytes_field(_NODE_OUTPUT, OUTPUT.encode()) + bytes_field(4, b"Concat") + bytes_field(_ATTRIBUTE, axis)
    )
    shape = b"".join(bytes_field(1, bytes_field(2, name)) for name in (b"N", b"scores"))
    kind = bytes_field(1, number_field(1, FLOAT) + bytes_field(2, shape))
    return bytes_field(_NODE, node) + bytes_field(
        _OUTPUT, bytes_field(_VALUE_NAME, OUTPUT.encode()) + bytes_field(2, kind)
    )


def _node(node: memoryview, prefix: str, input_name: str) -> bytes:
    kept = []
    for number, value, raw in fields(node):
        if number in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME) and isinstance(value, memoryview):
            kept.append(bytes_field(number, _new_name(value, prefix, input_name)))
            continue
        attribute = value if number == _ATTRIBUTE and isinstance(value, memoryview) else memoryview(b"")
        if any(field in _SUBGRAPHS for field, _, _ in fields(attribute)):
            raise CannotFuseError("subgraphs")
        kept.append(bytes(raw))
    return b"".join(kept)


def _with_name(message: memoryview, number: int, prefix: str, input_name: str) -> bytes:
    return b"".join(
        bytes_field(number, _new_name(value, prefix, input_name))
        if field == number and isinstance(value, memoryview)
        else bytes(raw)
        for field, value, raw in fields(message)
    )


def _new_name(name: memoryview, prefix: str, input_name: str) -> bytes:
    """An empty name is an input that is left out."""
    text = bytes(name).decode()
    return (text if text in ("", input_name) else prefix + text).encode()


def _name(message: int | memoryview | None, number: int) -> str:
    if not isinstance(message, memoryview):
        return ""
    return next((bytes(v).decode() for n, v, _ in fields(message) if n == number and isinstance(v, memoryview)), "")
