"""Decodes the body of an HTTP infer request, with the binary tensor extension, to an `InferRequest`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensai_serve.errors import RequestError
from sensai_serve.merge import Wait
from sensai_serve.preprocess import Floats, InputSpec
from serving.v2.json_object import parse_object
from serving.v2.request import (
    InferRequest,
    RequestedOutput,
    binary_by_default,
    every_output,
    parse_options,
    parse_outputs,
    region_part,
)
from serving.v2.shared_memory import Regions
from serving.v2.tensors import OUTPUTS, OutputSpec, check_input, from_bytes, from_json, shown

KNOWN_HEADERS, KNOWN_BYTES = 64, 2048
"""How many parsed JSON headers a `Decoder` caches, and the largest one in bytes."""
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class _Known:
    """A parsed JSON header in front of one binary tensor."""

    shape: tuple[int, ...]
    nbytes: int
    outputs: tuple[RequestedOutput, ...]
    wait: Wait | None
    timeout_s: float | None


class Decoder:
    """Decodes infer requests for one model of one FP32 input of a fixed shape, and caches their JSON headers.

    A client sends the same JSON in front of every tensor, byte for byte, unless it numbers its requests. A cached
    header is neither parsed nor checked again.
    """

    def __init__(
        self, spec: InputSpec, max_batch: int, regions: Regions, outputs: Mapping[str, OutputSpec] = OUTPUTS
    ) -> None:
        """Start with an empty cache; see `decode_request` for the arguments."""
        self._spec = spec
        self._max_batch = max_batch
        self._regions = regions
        self._outputs = outputs
        self._known: dict[bytes, _Known] = {}

    def known(self, header: bytes) -> InferRequest | None:
        """The request that a cached JSON header makes, with zeros in place of its inputs; None for another header."""
        known = self._known.get(header)
        if known is None:
            return None
        zeros = np.broadcast_to(np.float32(0), known.shape)
        return InferRequest(zeros, known.outputs, "", known.wait, known.timeout_s)

    def decode(self, body: bytes | memoryview, header_length: int | None) -> InferRequest:
        """Decode one request; see `decode_request`."""
        if not header_length or header_length > KNOWN_BYTES:
            return decode_request(body, header_length, self._spec, self._max_batch, self._regions, self._outputs)
        view = memoryview(body)
        header, tensor = bytes(view[:header_length]), view[header_length:]
        known = self._known.get(header)
        if known is not None and len(tensor) == known.nbytes:
            inputs = from_bytes(tensor, known.shape, self._spec)
            return InferRequest(inputs, known.outputs, "", known.wait, known.timeout_s)
        request = decode_request(body, header_length, self._spec, self._max_batch, self._regions, self._outputs)
        if len(tensor) and not request.id and all(output.region is None for output in request.outputs):
            if len(self._known) >= KNOWN_HEADERS:
                self._known.clear()
            assert isinstance(request.inputs, np.ndarray)
            shape, size = request.inputs.shape, request.inputs.nbytes
            self._known[header] = _Known(shape, size, request.outputs, request.wait, request.timeout_s)
        return request


def decode_request(
    body: bytes | memoryview,
    header_length: int | None,
    spec: InputSpec,
    max_batch: int,
    regions: Regions,
    known: Mapping[str, OutputSpec] = OUTPUTS,
) -> InferRequest:
    """Decode the body of a v2 infer request.

    Args:
        body: the whole body, decompressed.
        header_length: length in bytes of the JSON in front of binary tensors, from the header
            ``Inference-Header-Content-Length``; None where the body is JSON alone. 0 is Triton's raw request: the body
            is the values of one input.
        spec: the model's input.
        max_batch: the largest N.
        regions: the registered shared memory.
        known: the outputs of the model.

    Raises:
        RequestError: the request does not fit the model; the message says what was wrong and what was expected.
        UnknownRegionError: a shared memory region that is not registered.
    """
    view = memoryview(body)
    header, tail = split(view, header_length)
    if header_length == 0:
        return InferRequest(from_bytes(view, (1, *spec.shape), spec), every_output(binary=True, known=known))
    request = parse_object(header, numbers=0 if tail else max_batch * math.prod(spec.shape))
    parameters = optional_object(request, "parameters", "")
    wait, timeout_s = parse_options(parameters)
    request_id = request.get("id")
    if not isinstance(request_id, str | None):
        raise RequestError(f"id is {shown(request_id)}, expected text")
    return InferRequest(
        inputs=_input(request.get("inputs"), tail, spec, max_batch, regions),
        outputs=requested_outputs(request.get("outputs"), regions, binary=binary_by_default(parameters), known=known),
        id=request_id or "",
        wait=wait,
        timeout_s=timeout_s,
    )


def split(body: memoryview, header_length: int | None) -> tuple[memoryview, memoryview | None]:
    """The JSON of a body, and the binary tensors behind it; None where the body is JSON alone.

    Raises:
        RequestError: the JSON would be longer than the body.
    """
    if header_length is None:
        return body, None
    if not 0 <= header_length <= len(body):
        raise RequestError(
            f"Inference-Header-Content-Length is {header_length}, expected 0 to {len(body)}, the length of the body"
        )
    return body[:header_length], body[header_length:]


def _input(inputs: object, tail: memoryview | None, spec: InputSpec, max_batch: int, regions: Regions) -> Floats:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        given = f"{len(inputs)} entries" if isinstance(inputs, list) else shown(inputs)
        raise RequestError(f"inputs is {given}, expected a list of one object, the input {spec.name!r}")
    tensor = inputs[0]
    shape = check_input(tensor.get("name"), tensor.get("datatype"), tensor.get("shape"), spec, max_batch)
    where = f"input {spec.name!r}"
    parameters = optional_object(tensor, "parameters", f"{where}: ")
    size, region = parameters.get("binary_data_size"), region_part(parameters, regions, where)
    ways = [
        way
        for way, given in (
            ("data", tensor.get("data") is not None),
            ("binary_data_size", size is not None),
            ("shared_memory_region", region is not None),
        )
        if given
    ]
    if len(ways) != 1:
        raise RequestError(
            f"{where}: has {' and '.join(ways) or 'no values'}, expected one of data, binary_data_size and "
            "shared_memory_region"
        )
    if size is None and tail:
        raise RequestError(f"{len(tail)} bytes after the JSON, expected none: no input has a binary_data_size")
    if region is not None:
        return from_bytes(region.read(), shape, spec)
    if size is None:
        return from_json(tensor["data"], shape, spec)
    if tail is None:
        raise RequestError(
            f"{where}: binary_data_size is given, expected the header Inference-Header-Content-Length too"
        )
    if type(size) is not int or size != len(tail):
        raise RequestError(
            f"{where}: binary_data_size is {shown(size)}, expected {len(tail)}, the bytes after the JSON"
        )
    return from_bytes(tail, shape, spec)


def requested_outputs(
    outputs: object, regions: Regions, *, binary: bool, known: Mapping[str, OutputSpec] = OUTPUTS
) -> tuple[RequestedOutput, ...]:
    """The outputs that the JSON of a request asks for; see `serving.v2.request.parse_outputs`."""
    outputs = [] if outputs is None else outputs
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise RequestError(f"outputs is {shown(outputs)}, expected a list of objects")
    return parse_outputs(
        [(output.get("name"), optional_object(output, "parameters", "outputs: ")) for output in outputs],
        regions,
        binary=binary,
        known=known,
    )


def optional_object(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """The object `raw[key]` without its null members: some clients send every field, null where it is not given."""
    value = raw.get(key)
    if value is None:
        return _NOTHING
    if not isinstance(value, Mapping):
        raise RequestError(f"{where}{key} is {shown(value)}, expected an object")
    return {name: member for name, member in value.items() if member is not None}
