"""One input at a node: decoded, run by its workers, and traced."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tritonclient.grpc import service_pb2 as pb

from sensai_serve.errors import RequestError
from sensai_serve.tensors import Array, Inputs, agree, inputs_of
from serving.backends import Cause, Scores
from serving.node.version import Version
from serving.runtime.trace_context import TraceContext
from serving.v2.decode_named import matched
from serving.v2.tensors import check_input, from_bytes
from serving.v2.values import values_from_bytes

if TYPE_CHECKING:
    from serving.telemetry.otlp.spans import WorkerRun
    from serving.telemetry.otlp.telemetry import OtlpTelemetry


class StreamTask:
    """One input for this node's workers. See `serving.backends.Task`."""

    __slots__ = ("_loop", "_position", "_tell", "_thread", "closed", "inputs")
    expires: float | None = None

    def __init__(
        self, inputs: Inputs, position: Sequence[int], tell: Callable[[int, Scores | Cause, float], None]
    ) -> None:
        """Constructed on the event loop's thread.

        Args:
            inputs: as the networks take them; set later where they come in pieces.
            position: of every worker of the bundle, its place in the order in which they are asked.
            tell: called on the event loop with a worker, its scores FP32 [N, k] or why there are none, and the
                seconds inside its subnet.
        """
        self.inputs = inputs
        self.closed = False
        self._position = position
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def next_of(self, workers: Sequence[int]) -> int:
        """See `Task`; what workers on other hosts say is not known here."""
        return min(workers, key=self._position.__getitem__)

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """See `Task`."""
        self._pass_on(worker, scores, seconds)

    def fail(self, worker: int, cause: Cause) -> None:
        """See `Task`."""
        self._pass_on(worker, cause, 0.0)

    def _pass_on(self, worker: int, outcome: Scores | Cause, seconds: float) -> None:
        if threading.get_ident() == self._thread:
            self._tell(worker, outcome, seconds)
        else:
            self._loop.call_soon_threadsafe(self._tell, worker, outcome, seconds)


class TracedRuns:
    """What became of one traced input at each worker."""

    def __init__(self, otlp: OtlpTelemetry, trace: TraceContext, version: Version) -> None:
        from serving.telemetry.otlp.spans import ARRIVED, WorkerRun

        self._otlp, self._trace, self._version = otlp, trace, version
        self._began = time.perf_counter_ns()
        self._make, self._arrived = WorkerRun, ARRIVED
        self._runs: list[WorkerRun] = []

    def add(self, worker: int, outcome: Scores | Cause, seconds: float) -> None:
        """A worker has given its scores, or why there are none."""
        came = outcome.value if isinstance(outcome, Cause) else self._arrived
        self._runs.append(self._make(worker, came, seconds, time.perf_counter_ns()))

    def send(self) -> None:
        """Send what is known as spans."""
        self._otlp.ran(self._trace, self._version.manifest.name, self._version.number, self._began, self._runs)


def read_input(version: Version, request: pb.ModelInferRequest, max_batch: int) -> Inputs:
    """Decode the inputs of a request.

    Raises:
        RequestError: a name, datatype, shape, length or value is not valid.
    """
    specs, raws = version.manifest.inputs, request.raw_input_contents
    if len(request.inputs) != len(specs) or len(raws) != len(specs):
        names = ", ".join(repr(spec.name) for spec in specs)
        raise RequestError(
            f"expected {'one input' if len(specs) == 1 else 'the inputs'}, {names}, in raw_input_contents"
        )
    if (plain := version.manifest.plain_input) is not None:
        only = request.inputs[0]
        return from_bytes(raws[0], check_input(only.name, only.datatype, list(only.shape), plain, max_batch), plain)
    shapes, arrays = dict[str, tuple[int, ...]](), dict[str, Array]()
    given = ((tensor.name, (tensor, raw)) for tensor, raw in zip(request.inputs, raws, strict=True))
    for spec, (tensor, raw) in matched(specs, given):
        shape = shapes[spec.name] = check_input(tensor.name, tensor.datatype, list(tensor.shape), spec, max_batch)
        arrays[spec.name] = values_from_bytes(raw, shape, spec)
    agree(shapes, specs)
    return inputs_of(arrays, specs)
