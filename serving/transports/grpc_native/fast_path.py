"""The fast path over gRPC: the common call of ModelInfer, answered in one function from its bytes to the reply's.

A message holds the values of its input last, and what is in front of them is the same in every call of a client. So it
is looked up in place of being parsed, as over HTTP; see docs/fast-path.md. Anything out of the ordinary is left to the
usual way, before anything is counted. Replies of both ways are equal, and so are all counters:
tests/serving/transports/grpc/test_native_fast_path.py holds them against each other.
"""

from __future__ import annotations

from collections.abc import Callable

from tritonclient.grpc import service_pb2 as pb

from sensai_serve.errors import SensaiError, UnknownModelError
from sensai_serve.merge import Answer
from sensai_serve.protobuf import fields, varint
from serving.dataplane import DataPlane
from serving.engine.gateway import Gateway
from serving.runtime.trace_context import TRACEPARENT
from serving.transports._fronts import Front, KnownFronts, OutputValues, common_input
from serving.transports.grpc.codec import decode, encode
from serving.v2.tensors import outputs_of

Metadata = tuple[tuple[str, str | bytes], ...]
"""What a client sends beside a message."""
_VALUES = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_REPLIED = bytes([pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""The key of a field of the reply that holds the values of an output."""
_UNUSUAL = frozenset(("x-request-id", TRACEPARENT))
"""Metadata whose value is another in each call."""


class _GrpcFront(Front[tuple[bytes, OutputValues]]):
    """A common call. Its head is the reply up to the outputs' values, and what writes these."""

    __slots__ = ()

    def _make_head(self, gateway: Gateway, answer: Answer) -> tuple[bytes, OutputValues]:
        labels = gateway.manifest.labels
        reply = encode(self.request, answer, name=gateway.name, version=gateway.version, labels=labels)
        before = [_REPLIED + varint(len(values)) for values in reply.raw_output_contents]
        del reply.raw_output_contents[:]
        return reply.SerializeToString(), OutputValues(self.request.outputs, len(labels), before)


class GrpcFastPath:
    """Answers common calls of every connection of one listener."""

    def __init__(self, plane: DataPlane) -> None:
        """Know nothing yet.

        Args:
            plane: counts the calls; everything is forgotten when what clients may do changes.
        """
        self._plane = plane
        self._known: KnownFronts[_GrpcFront] = KnownFronts()
        plane.access.on_change(self._known.clear)

    def answer(self, message: bytes, metadata: Metadata, respond: Callable[[bytes], object]) -> bool:
        """Answer a common call; False for any other, with nothing done.

        Args:
            message: a ModelInferRequest.
            metadata: what came beside it.
            respond: sends a ModelInferResponse.
        """
        found = self._known.answer(message, metadata)
        if found is None:
            return False
        head, outputs = found.front.head(found.gateway, found.answered)
        respond(head + outputs.of(found.answered.verdict))
        found.count(self._plane, "grpc", "OK")
        return True

    def learn(self, message: bytes, metadata: Metadata, request: pb.ModelInferRequest) -> None:
        """Remember the front of a call that the usual way has answered, where calls like it are common.

        Args:
            message: a ModelInferRequest.
            metadata: what came beside it.
            request: the message, parsed.
        """
        if request.id or self._plane.telemetry.looks_at_each or not _UNUSUAL.isdisjoint(key for key, _ in metadata):
            return
        try:
            gateway = self._plane.repository.get(request.model_name, request.model_version)
        except UnknownModelError:  # it has been unloaded
            return
        manifest = gateway.manifest
        if gateway.at_once is None or manifest.plain_input is None or not _values_are_last(message):
            return
        most, outputs = gateway.options.max_batch, outputs_of(manifest.task)
        try:
            asked = decode(request, manifest.plain_input, most, self._plane.no_regions, outputs)
        except SensaiError:  # it asks for shared memory
            return
        wait, inputs = gateway.wait_at_once(asked.wait), common_input(asked)
        if wait is not None and inputs is not None:
            self._known.add(_GrpcFront(gateway, wait, asked, inputs.shape), message, inputs.nbytes, metadata)


def _values_are_last(message: bytes) -> bool:
    """Whether the last field of a ModelInferRequest holds the values of an input, and no other field does."""
    try:
        numbers = [number for number, _, _ in fields(memoryview(message))]
    except (ValueError, IndexError):  # fields of a kind that no message of the protocol has
        return False
    return numbers.count(_VALUES) == 1 and numbers[-1] == _VALUES
