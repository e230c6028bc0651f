"""The fast path over gRPC: the common call of ModelInfer, answered in one function from its bytes to the reply's.

A message holds the values of its input last, and what is in front of them is the same in every call of a client. So it
is looked up in place of being parsed, as over HTTP; see docs/fast-path.md. Anything out of the ordinary is left to the
usual way, before anything is counted. Replies of both ways are equal, and so are all counters:
tests/serving/transports/grpc/test_native_fast_path.py holds them against each other.
"""

from __future__ import annotations

from time import perf_counter_ns
from weakref import ref

from tritonclient.grpc import service_pb2 as pb

from sensai_serve.errors import SensaiError, UnknownModelError
from sensai_serve.merge import Wait
from sensai_serve.merge.rules import Verdict
from sensai_serve.protobuf import fields, varint
from serving.dataplane import DataPlane
from serving.engine.at_once import AnsweredAtOnce, answer_of
from serving.engine.gateway import Gateway
from serving.runtime.trace_context import TRACEPARENT
from serving.transports._fronts import KnownFronts, OutputValues, common_input, finite_values
from serving.transports.grpc.codec import decode, encode
from serving.v2 import InferRequest
from serving.v2.tensors import outputs_of

Metadata = tuple[tuple[str, str | bytes], ...]
"""What a client sends beside a message."""
_VALUES = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_REPLIED = bytes([pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""The key of a field of the reply that holds the values of an output."""
_UNUSUAL = frozenset(("x-request-id", TRACEPARENT))
"""Metadata whose value is another in each call."""


class Front:
    """What is known of calls that begin with the same bytes, up to the values of their one input."""

    __slots__ = ("gateway", "heads", "request", "shape", "values", "wait")

    def __init__(self, gateway: Gateway, wait: Wait, request: InferRequest, shape: tuple[int, ...]) -> None:
        """Prepare the reply.

        Args:
            gateway: the model.
            wait: what these requests wait for.
            request: such a request.
            shape: of its inputs, [1, *shape].
        """
        self.gateway = ref(gateway)  # what is known of a replaced model must not keep it
        self.wait = wait
        self.request = request
        self.shape = shape
        self.heads: dict[tuple[int, bool], tuple[bytes, OutputValues]] = {}
        """By how many workers arrived and whether the class is elected: the reply up to the outputs' values, and what
        writes these."""

    def head(self, gateway: Gateway, arrived: int, verdict: Verdict) -> tuple[bytes, OutputValues]:
        """The parts of a reply like this one; kept in `heads`."""
        labels = gateway.manifest.labels
        answer = answer_of(gateway.plan, arrived, verdict)
        reply = encode(self.request, answer, name=gateway.name, version=gateway.version, labels=labels)
        before = [_REPLIED + varint(len(values)) for values in reply.raw_output_contents]
        del reply.raw_output_contents[:]
        values = OutputValues(self.request.outputs, len(labels), before)
        self.heads[arrived, verdict.elected] = reply.SerializeToString(), values
        return self.heads[arrived, verdict.elected]


class FastReply:
    """A reply that has been made, and what counts it."""

    __slots__ = ("_answered", "_gateway", "_plane", "_request", "_times", "message")

    def __init__(
        self,
        plane: DataPlane,
        gateway: Gateway,
        request: InferRequest,
        answered: AnsweredAtOnce,
        times: tuple[int, int, int, int],
        message: bytes,
    ) -> None:
        self._plane = plane
        self._gateway = gateway
        self._request = request
        self._answered = answered
        self._times = times
        self.message = message
        """A ModelInferResponse."""

    def count(self) -> None:
        """Count the call everywhere that a call is counted. To be called once, after the reply is sent."""
        self._plane.count("grpc", "OK", self._gateway, self._request, self._answered, self._times)


class GrpcFastPath:
    """Answers common calls of every connection of one listener."""

    def __init__(self, plane: DataPlane) -> None:
        """Know nothing yet.

        Args:
            plane: counts the calls; everything is forgotten when what clients may do changes.
        """
        self._plane = plane
        self._known: KnownFronts[Front] = KnownFronts()
        plane.access.on_change(self._known.clear)

    def answer(self, message: bytes, metadata: Metadata) -> FastReply | None:
        """Answer a common call; None for any other, with nothing done.

        Args:
            message: a ModelInferRequest.
            metadata: what came beside it.
        """
        started = perf_counter_ns()
        found = self._known.find(message, metadata)
        if found is None:
            return None
        front, size = found
        values = finite_values(message, size)
        if values is None:
            return None
        gateway = front.gateway()
        at_once = None if gateway is None else gateway.at_once
        if gateway is None or at_once is None:  # another model has its name, or none
            self._known.remove(message, size, metadata)
            return None
        decoded = perf_counter_ns()
        answered = at_once.answer(values.reshape(front.shape), front.wait)
        if answered is None:
            return None
        merged = perf_counter_ns()
        verdict = answered.verdict
        head, outputs = front.heads.get((answered.arrived, verdict.elected)) or front.head(
            gateway, answered.arrived, verdict
        )
        reply = head + outputs.of(verdict)
        times = (started, decoded, merged, perf_counter_ns())
        return FastReply(self._plane, gateway, front.request, answered, times, reply)

    def learn(self, message: bytes, metadata: Metadata, request: pb.ModelInferRequest) -> None:
        """Remember the front of a call that the usual way has answered, where calls like it are common.

        Args:
            message: a ModelInferRequest.
            metadata: what came beside it.
            request: the message, parsed.
        """
        if request.id or self._plane.looks_at_each or not _UNUSUAL.isdisjoint(key for key, _ in metadata):
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
            self._known.add(Front(gateway, wait, asked, inputs.shape), message, inputs.nbytes, metadata)


def _values_are_last(message: bytes) -> bool:
    """Whether the last field of a ModelInferRequest holds the values of an input, and no other field does."""
    try:
        numbers = [number for number, _, _ in fields(memoryview(message))]
    except (ValueError, IndexError):  # fields of a kind that no message of the protocol has
        return False
    return numbers.count(_VALUES) == 1 and numbers[-1] == _VALUES
