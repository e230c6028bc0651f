"""Requests to remote workers as bytes: the tensor is serialised once, and fields that differ by worker precede it.

Concatenated Protocol Buffers messages are one message of all their fields, so one input's bytes serve every worker,
whatever the model of each. https://protobuf.dev/programming-guides/encoding/#last-one-wins
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.input_spec import InputSpec
from sensai_serve.protobuf import varint
from sensai_serve.remote_names import SCORES
from sensai_serve.tensors import Inputs, arrays_of, type_of
from serving.runtime.trace_context import TRACEPARENT

_RAW_INPUT_CONTENTS = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2
WORKERS = "workers"
"""Request parameter of a node's stream: the workers that run the input, ``0,1,4``."""
CLOSED = "closed"
"""Request parameter of a node's stream: ids of earlier requests whose answers are no longer wanted."""
TIMEOUT = "timeout"
"""Request parameter: microseconds after which the answer is no longer wanted."""
RUN_US = "run_us"
"""Reply parameter of a node's stream: microseconds inside the subnet of each output, ``120,95``."""
FAILED = "failed"
"""Reply parameter of a node's stream: workers whose scores will not come, and why: ``3:failed,5:dead``."""
RELAY = "relay"
"""Parameter of a message without an id on a node's stream: the branches below the node, see `branch.encode`."""
SUBNETS = "subnets"
"""Parameter beside `RELAY`: the gateway's `branch.digest_of`."""
MEASURE = "measure"
"""Parameter of a message that is only answered, so that a link is measured: empty, or the URL of another node that this
one is to measure its link to."""
PIECES = "pieces"
"""Request parameter of a node's stream: the number of pieces that the input comes in, the first of which is in this
message; 0 in those of the others. The pieces are the raw contents."""
TAKES_PIECES = "sensai_pieces"
"""Parameter of a node's configuration: the `TREE_VERSION` of inputs in pieces that it takes."""
RELAYS = "sensai_relay"
"""Parameter of a node's configuration where it hands inputs on: its `TREE_VERSION`."""
TREE_VERSION = "1"
"""What nodes and gateways of one broadcast tree agree on: changed with every change of these messages."""
UP, DOWN = "up", "down"
"""Parameters of a message without an id on a node's stream: a worker that came up or went down."""
_PREFIX = f"{SCORES}-"


class EncodedInput:
    """One task's inputs as bytes, encoded for each protocol when the first server of it needs them."""

    def __init__(
        self, inputs: Inputs, specs: Sequence[InputSpec], timeout_s: float | None, traceparent: str | None = None
    ) -> None:
        """Nothing is copied yet.

        Args:
            inputs: of N inputs, C-contiguous.
            specs: what the networks take.
            timeout_s: seconds after which the answer is no longer wanted; None for never.
            traceparent: the trace that the request belongs to; None for none.
        """
        self.timeout_s = timeout_s
        self.traceparent = traceparent
        self._inputs = inputs
        self._specs = specs

    @cached_property
    def grpc(self) -> bytes:
        """The fields of a ModelInferRequest that are the same for every worker."""
        tensors = self._tensors
        parts: list[bytes | memoryview] = [
            _header(tuple((name, datatype, shape) for name, datatype, shape, _ in tensors))
        ]
        for *_, raw in tensors:
            parts += (varint(_RAW_INPUT_CONTENTS), varint(len(raw)), raw)
        return b"".join(parts)

    @cached_property
    def http(self) -> tuple[bytes, memoryview]:
        """The JSON of an infer request, and the tensors that follow it."""
        tensors = self._tensors
        given = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
            for name, datatype, shape, raw in tensors
        ]
        wanted = {"name": SCORES, "parameters": {"binary_data": True}}
        body: dict[str, object] = {"inputs": given, "outputs": [wanted]}
        if self.timeout_s is not None:
            body["parameters"] = {TIMEOUT: _microseconds(self.timeout_s)}
        raws = [raw for *_, raw in tensors]
        return json.dumps(body).encode(), raws[0] if len(raws) == 1 else memoryview(b"".join(raws))

    @property
    def _tensors(self) -> list[tuple[str, str, tuple[int, ...], memoryview]]:
        """The name, datatype, shape and bytes of each tensor."""
        arrays = arrays_of(self._inputs, self._specs)
        return [
            (
                spec.name,
                spec.dtype,
                arrays[spec.name].shape,
                np.ascontiguousarray(arrays[spec.name], type_of(spec.dtype)).data.cast("B"),
            )
            for spec in self._specs
        ]


@lru_cache(64)
def head(model: str, version: str, workers: tuple[int, ...] = ()) -> bytes:
    """Encode the fields of a ModelInferRequest that name the model and, at a node, the workers."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    if workers:
        request.parameters[WORKERS].string_param = ",".join(map(str, workers))
    return bytes(request.SerializeToString())


def particulars(
    ticket: int,
    closed: Iterable[int] = (),
    timeout_s: float | None = None,
    traceparent: str | None = None,
    pieces: int | None = None,
) -> bytes:
    """Encode the fields of a ModelInferRequest that belong to one request.

    Args:
        ticket: the id of the request.
        closed: ids of earlier requests whose answers are no longer wanted.
        timeout_s: seconds after which the answer is no longer wanted; None for never.
        traceparent: the trace that the request belongs to; None for none.
        pieces: the value of `PIECES`; None for an input in one message.
    """
    request = pb.ModelInferRequest(id=str(ticket))
    if told := ",".join(map(str, closed)):
        request.parameters[CLOSED].string_param = told
    if timeout_s is not None:
        request.parameters[TIMEOUT].int64_param = _microseconds(timeout_s)
    if traceparent is not None:
        request.parameters[TRACEPARENT].string_param = traceparent
    if pieces is not None:
        request.parameters[PIECES].int64_param = pieces
    return bytes(request.SerializeToString())


def raw_contents(length: int) -> bytes:
    """Encode what precedes one piece of an input, of so many bytes, in a ModelInferRequest."""
    return varint(_RAW_INPUT_CONTENTS) + varint(length)


def below(branches: str, subnets: str) -> bytes:
    """Encode the fields of a ModelInferRequest that tell a node the branches below it."""
    request = pb.ModelInferRequest()
    request.parameters[RELAY].string_param = branches
    request.parameters[SUBNETS].string_param = subnets
    return bytes(request.SerializeToString())


def output_name(worker: int) -> str:
    """Return the name of one worker's scores in a node's stream."""
    return f"{_PREFIX}{worker}"


def worker_of(output: str) -> int:
    """Return the worker of an `output_name`.

    Raises:
        ValueError: the text is not such a name.
    """
    if not output.startswith(_PREFIX):
        raise ValueError(f"output is {output!r}, expected {_PREFIX} and a worker")
    return int(output[len(_PREFIX) :])


def scores_of(reply: pb.ModelInferResponse, at: int) -> npt.NDArray[np.float32]:
    """Return output number `at` of a reply, FP32 of the shape that the reply names.

    Raises:
        ValueError: the values are not FP32, or do not fit the shape.
    """
    output = reply.outputs[at]
    if output.datatype != "FP32":
        raise ValueError(f"{output.name} is {output.datatype}, expected FP32")
    if at < len(reply.raw_output_contents):
        values = np.frombuffer(reply.raw_output_contents[at], "<f4")
    else:
        values = np.array(output.contents.fp32_contents, np.float32)
    return values.reshape(list(output.shape))


@lru_cache(64)
def _header(tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    request = pb.ModelInferRequest()
    for name, datatype, shape in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(request.SerializeToString())


def _microseconds(seconds: float) -> int:
    return max(1, int(seconds * 1e6))
