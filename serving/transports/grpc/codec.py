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
from sensai_serve.tensors import Array, agree, exact
from sensai_serve.text_spec import TokenizerSpec
from serving.v2.decode_named import check_one_way, matched_or_texts
from serving.v2.encode import describe, reply_parameters
from serving.v2.request import InferRequest, parse_options, parse_outputs, region_part
from serving.v2.shared_memory import Regions
from serving.v2.tensors import OUTPUTS, OutputSpec, check_input, from_array, from_bytes
from serving.v2.texts import Values, Wanted, check_tensor, decode_bytes, texts_of, together
from serving.v2.values import shaped


def decode(
    request: pb.ModelInferRequest,
    spec: InputSpec,
    max_batch: int,
    regions: Regions,
    known: Mapping[str, OutputSpec] = OUTPUTS,
) -> InferRequest:
    """Decode a ModelInferRequest.

    Args:
        request: the message.
        spec: the model's input.
        max_batch: the largest N.
        regions: the registered shared memory.
        known: the outputs of the model.

    Raises:
        RequestError: the request does not fit the model.
        UnknownRegionError: a shared memory region that is not registered.
    """
    wait, timeout_s = parse_options(_scalars(request.parameters))
    outputs = [(output.name, _scalars(output.parameters)) for output in request.outputs]
    return InferRequest(
        inputs=_input(request, spec, max_batch, regions),
        outputs=parse_outputs(outputs, regions, binary=True, known=known),
        id=request.id,
        wait=wait,
        timeout_s=timeout_s,
    )


def decode_named(
    request: pb.ModelInferRequest,
    specs: Sequence[InputSpec],
    max_batch: int,
    regions: Regions,
    tokenizer: TokenizerSpec | None = None,
    known: Mapping[str, OutputSpec] = OUTPUTS,
) -> InferRequest:
    """Decode a ModelInferRequest for a model of several inputs, other datatypes than FP32, dynamic axes, or texts.

    Args:
        request: the message.
        specs: the model's inputs.
        max_batch: the largest N.
        regions: the registered shared memory.
        tokenizer: makes some of the inputs of texts, which may be sent in place of these; None: it takes no texts.
        known: the outputs of the model.

    Raises:
        RequestError: the request does not fit the model.
        UnknownRegionError: a shared memory region that is not registered.
    """
    wait, timeout_s = parse_options(_scalars(request.parameters))
    outputs = [(output.name, _scalars(output.parameters)) for output in request.outputs]
    raws, used = request.raw_input_contents, 0
    values, shapes = dict[str, Values](), dict[str, tuple[int, ...]]()
    tensors = matched_or_texts(specs, tokenizer, [(tensor.name, tensor) for tensor in request.inputs])
    for spec, tensor in tensors:
        where = f"input {spec.name!r}"
        shape = check_tensor(tensor.name, tensor.datatype, list(tensor.shape), spec, max_batch)
        region = region_part(_scalars(tensor.parameters), regions, where)
        own = tensor.HasField("contents")
        raw = bool(raws) and not own and region is None
        check_one_way(where, contents=own, raw_input_contents=raw, shared_memory_region=region is not None)
        if region is not None:
            values[spec.name] = decode_bytes(region.read(), shape, spec)
        elif raw:
            if used == len(raws):
                raise RequestError(f"{len(raws)} raw_input_contents, expected one for each input")
            values[spec.name] = decode_bytes(raws[used], shape, spec)
            used += 1
        else:
            values[spec.name] = _contents(tensor, shape, spec)
        shapes[spec.name] = shape
    if used != len(raws):
        raise RequestError(f"{len(raws)} raw_input_contents, expected {used}, as many as inputs that have no others")
    agree(shapes, [spec for spec, _ in tensors if isinstance(spec, InputSpec)])
    return InferRequest(
        inputs=together(values, specs),
        outputs=parse_outputs(outputs, regions, binary=True, known=known),
        id=request.id,
        wait=wait,
        timeout_s=timeout_s,
    )


_CONTENTS = {
    "FP32": "fp32_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "BOOL": "bool_contents",
}
"""The field of InferTensorContents that holds the values of a datatype; those of FP16 are always raw."""


def _contents(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], spec: Wanted) -> Values:
    if isinstance(spec, TokenizerSpec):
        return texts_of(tensor.contents.bytes_contents, shape[0], spec)
    return shaped(_numbers(tensor, spec), shape, spec)


def _numbers(tensor: pb.ModelInferRequest.InferInputTensor, spec: InputSpec) -> Array:
    field = _CONTENTS.get(spec.dtype)
    if field is None:
        raise RequestError(f"input {spec.name!r}: has contents, expected raw_input_contents, as {spec.dtype} needs")
    values = getattr(tensor.contents, field)
    return exact(np.fromiter(values, _WIDE.get(spec.dtype, spec.numpy), len(values)), spec.numpy, spec)


_WIDE = {"UINT8": np.uint32}
"""The type of the values of `_CONTENTS` where it is another than the datatype's."""


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
