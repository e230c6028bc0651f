"""Decodes and encodes the Protocol Buffers messages of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.errors import RequestError
from sensai_serve.merge import Answer
from sensai_serve.preprocess import Floats, InputSpec
from serving.v2.encode import describe, reply_parameters
from serving.v2.request import InferRequest, parse_options, parse_outputs, region_part
from serving.v2.shared_memory import Regions
from serving.v2.tensors import check_input, from_array, from_bytes


def decode(request: pb.ModelInferRequest, spec: InputSpec, max_batch: int, regions: Regions) -> InferRequest:
    """Decode a ModelInferRequest.

    Args:
        request: the message.
        spec: the model's input.
        max_batch: the largest N.
        regions: the registered shared memory.

    Raises:
        RequestError: the request does not fit the model.
        UnknownRegionError: a shared memory region that is not registered.
    """
    wait, timeout_s = parse_options(_scalars(request.parameters))
    outputs = [(output.name, _scalars(output.parameters)) for output in request.outputs]
    return InferRequest(
        inputs=_input(request, spec, max_batch, regions),
        outputs=parse_outputs(outputs, regions, binary=True),
        id=request.id,
        wait=wait,
        timeout_s=timeout_s,
    )


def encode(
    request: InferRequest, answer: Answer, *, name: str, version: str, labels: Sequence[str]
) -> pb.ModelInferResponse:
    """Encode a reply. Outputs are in `raw_output_contents`, with an empty entry for one in shared memory.

    Args:
        request: the request, which says what outputs are wanted.
        answer: the answer of N inputs.
        name: the model's name.
        version: the model's version.
        labels: the labels of the C classes, for the classification extension.

    Raises:
        RequestError: an output does not fit into the shared memory given for it.
    """
    reply = pb.ModelInferResponse(model_name=name, model_version=version, id=request.id)
    for key, value in reply_parameters(answer).items():
        if isinstance(value, bool):
            reply.parameters[key].bool_param = value
        else:
            reply.parameters[key].string_param = value
    for output in request.outputs:
        tensor = describe(output, answer, labels)
        reply.outputs.add(name=output.name, datatype=tensor.datatype, shape=tensor.shape)
        if output.region is None:
            reply.raw_output_contents.append(tensor.to_bytes())
        else:
            tensor.write(output.region, output.name)
            reply.raw_output_contents.append(b"")
    return reply


def _input(request: pb.ModelInferRequest, spec: InputSpec, max_batch: int, regions: Regions) -> Floats:
    if len(request.inputs) != 1:
        raise RequestError(f"{len(request.inputs)} inputs, expected one, {spec.name!r}")
    tensor, raw = request.inputs[0], request.raw_input_contents
    shape = check_input(tensor.name, tensor.datatype, list(tensor.shape), spec, max_batch)
    where = f"input {spec.name!r}"
    region = region_part(_scalars(tensor.parameters), regions, where)
    ways = [
        way
        for way, given in (
            ("contents", tensor.HasField("contents")),
            ("raw_input_contents", bool(raw)),
            ("shared_memory_region", region is not None),
        )
        if given
    ]
    if len(ways) != 1:
        raise RequestError(
            f"{where}: has {' and '.join(ways) or 'no values'}, expected one of contents, raw_input_contents and "
            "shared_memory_region"
        )
    if region is not None:
        return from_bytes(region.read(), shape, spec)
    if raw:
        if len(raw) != 1:
            raise RequestError(f"{len(raw)} raw_input_contents, expected 1, as many as inputs")
        return from_bytes(raw[0], shape, spec)
    values = tensor.contents.fp32_contents
    return from_array(np.fromiter(values, np.float32, len(values)), shape, spec)


def scalar(value: Message) -> Any:
    """The value of a parameter message, whatever its type; None where none is set."""
    choice = value.WhichOneof("parameter_choice")
    return None if choice is None else getattr(value, choice)


def _scalars(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    return {key: scalar(value) for key, value in parameters.items() if value.WhichOneof("parameter_choice")}
