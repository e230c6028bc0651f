"""Several small ONNX networks with one input as one network with several outputs: one call where there were many.

Protocol Buffers messages are copied field by field, and only names are written anew. What this does not know how to
rename, it refuses: whoever asks runs the networks one by one then.
"""

from __future__ import annotations

from collections.abc import Sequence

from sensai_serve.onnxfile import fields

_GRAPH, _OPSETS, _TRAINING, _FUNCTIONS = 7, 8, 20, 25  # of a model
_NODE, _INITIALISER, _SPARSE, _INPUT, _OUTPUT = 1, 5, 15, 11, 12  # of a graph
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _ATTRIBUTE = 1, 2, 3, 5
_SUBGRAPHS = (6, 11)  # of an attribute
_TENSOR_NAME, _VALUE_NAME = 8, 1
_EXTERNAL = 13  # of a tensor


class CannotFuseError(Exception):
    """The networks use something that is not renamed here; the message says what."""


def fuse(networks: Sequence[bytes], input_name: str) -> bytes:
    """One network out of several.

    Args:
        networks: ONNX files, each with this one input, of the same operator sets.
        input_name: of the input that they share.

    Raises:
        CannotFuseError: they differ in their operator sets or inputs, or hold subgraphs, functions, sparse or external
            tensors.

    Returns:
        An ONNX file with the outputs of all, in order; those of network k are called ``k/NAME``.
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
    head = b"".join(bytes(raw) for number, _, raw in models[0] if number != _GRAPH)
    return head + _bytes(_GRAPH, _bytes(2, b"fused") + body)


def _renamed(graph: memoryview, prefix: str, input_name: str, *, first: bool) -> bytes:
    """A graph's nodes, initialisers and outputs, and its input where it is the first, names prefixed."""
    parts = list(fields(graph))
    constants = {_name(value, _TENSOR_NAME) for number, value, _ in parts if number == _INITIALISER}
    kept = []
    for number, value, raw in parts:
        if number == _SPARSE:
            raise CannotFuseError("sparse tensors")
        if not isinstance(value, memoryview):
            continue
        if number == _NODE:
            kept.append(_bytes(_NODE, _node(value, prefix, input_name)))
        elif number == _INITIALISER:
            if any(field == _EXTERNAL for field, _, _ in fields(value)):
                raise CannotFuseError("external data")
            kept.append(_bytes(_INITIALISER, _with_name(value, _TENSOR_NAME, prefix, input_name)))
        elif number == _OUTPUT:
            kept.append(_bytes(_OUTPUT, _with_name(value, _VALUE_NAME, prefix, input_name)))
        elif number == _INPUT and (name := _name(value, _VALUE_NAME)) not in constants:
            if name != input_name:
                raise CannotFuseError(f"an input {name}")
            kept += [bytes(raw)] if first else []
    return b"".join(kept)


def _node(node: memoryview, prefix: str, input_name: str) -> bytes:
    kept = []
    for number, value, raw in fields(node):
        if number in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME) and isinstance(value, memoryview):
            kept.append(_bytes(number, _new_name(value, prefix, input_name)))
            continue
        attribute = value if number == _ATTRIBUTE and isinstance(value, memoryview) else memoryview(b"")
        if any(field in _SUBGRAPHS for field, _, _ in fields(attribute)):
            raise CannotFuseError("subgraphs")
        kept.append(bytes(raw))
    return b"".join(kept)


def _with_name(message: memoryview, number: int, prefix: str, input_name: str) -> bytes:
    return b"".join(
        _bytes(number, _new_name(value, prefix, input_name))
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


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
