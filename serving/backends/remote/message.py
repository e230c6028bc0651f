"""Requests to remote workers as bytes: the tensor is serialised once, and what differs by worker is put before it.

Protocol Buffers messages may be concatenated: the result is the message of all their fields. So one input's bytes serve
every worker, whatever model each is. https://protobuf.dev/programming-guides/encoding/#last-one-wins
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.protobuf import varint
from sensai_serve.remote import SCORES

_RAW_INPUT_CONTENTS = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2
WORKERS = "workers"
"""Request parameter of a node's stream: who is to run the input."""
CLOSED = "closed"
"""... the ids of earlier requests that nobody waits for any more."""
TIMEOUT = "timeout"
"""Request parameter: microseconds, after which nobody waits."""
RUN_US = "run_us"
"""Reply parameter of a node's stream: for each output, how long its subnet took."""
FAILED = "failed"
"""... workers whose scores will not come, and why: ``3:failed,5:dead``."""
UP, DOWN = "up", "down"
"""... of a reply to nothing: workers that have come or gone."""
_PREFIX = f"{SCORES}-"


class EncodedInput:
    """One task's input as bytes, made for each protocol when the first server that speaks it asks."""

    def __init__(self, inputs: npt.NDArray[np.float32], name: str, timeout_s: float | None) -> None:
        """Nothing is copied yet.

        Args:
            inputs: FP32 [N, *shape], C-contiguous.
            name: of the input.
            timeout_s: seconds, after which nobody waits; None where somebody waits for ever.
        """
        self.timeout_s = timeout_s
        self._inputs = inputs
        self._name = name

    @cached_property
    def grpc(self) -> bytes:
        """The part of a ModelInferRequest that is the same for every worker."""
        raw = self._raw
        header = _header(self._name, self._inputs.shape)
        return b"".join((header, varint(_RAW_INPUT_CONTENTS), varint(len(raw)), raw))

    @cached_property
    def http(self) -> tuple[bytes, memoryview]:
        """An infer request's JSON, and the tensor that follows it."""
        raw = self._raw
        given = {"name": self._name, "datatype": "FP32", "shape": self._inputs.shape,
                 "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
        wanted = {"name": SCORES, "parameters": {"binary_data": True}}
        body: dict[str, object] = {"inputs": [given], "outputs": [wanted]}
        if self.timeout_s is not None:
            body["parameters"] = {TIMEOUT: _microseconds(self.timeout_s)}
        return json.dumps(body).encode(), raw

    @property
    def _raw(self) -> memoryview:
        return np.ascontiguousarray(self._inputs, "<f4").data.cast("B")


@lru_cache(64)
def head(model: str, version: str, workers: tuple[int, ...] = ()) -> bytes:
    """The part that says which model, and at a node which of its workers."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    if workers:
        request.parameters[WORKERS].string_param = ",".join(map(str, workers))
    return bytes(request.SerializeToString())


def particulars(ticket: int, closed: Iterable[int] = (), timeout_s: float | None = None) -> bytes:
    """The part of this request alone: its id, what is not waited for any more, and how long it has, in seconds."""
    request = pb.ModelInferRequest(id=str(ticket))
    if told := ",".join(map(str, closed)):
        request.parameters[CLOSED].string_param = told
    if timeout_s is not None:
        request.parameters[TIMEOUT].int64_param = _microseconds(timeout_s)
    return bytes(request.SerializeToString())


def output_name(worker: int) -> str:
    """What a node's stream calls one worker's scores."""
    return f"{_PREFIX}{worker}"


def worker_of(output: str) -> int:
    """The worker of an `output_name`.

    Raises:
        ValueError: no such name.
    """
    if not output.startswith(_PREFIX):
        raise ValueError(f"output is {output!r}, expected {_PREFIX} and a worker")
    return int(output[len(_PREFIX) :])


def scores_of(reply: pb.ModelInferResponse, at: int) -> npt.NDArray[np.float32]:
    """Output number `at` of a reply, FP32 of the shape that it says.

    Raises:
        ValueError: no FP32 values, or not as many as the shape takes.
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
def _header(name: str, shape: tuple[int, ...]) -> bytes:
    request = pb.ModelInferRequest()
    request.inputs.add(name=name, datatype="FP32", shape=shape)
    return bytes(request.SerializeToString())


def _microseconds(seconds: float) -> int:
    return max(1, int(seconds * 1e6))
