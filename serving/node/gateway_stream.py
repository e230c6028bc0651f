"""One gateway's stream at a node: inputs come in, scores go out as workers end, and so does who is up or down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.errors import RequestError, SensaiError
from sensai_serve.tensors import Inputs
from serving.backends import Cause, Scores
from serving.backends.remote.measure import LATENCY, RATE, measure
from serving.backends.remote.message import (
    CLOSED,
    DOWN,
    FAILED,
    MEASURE,
    PIECES,
    RELAY,
    RUN_US,
    SUBNETS,
    TIMEOUT,
    UP,
    WORKERS,
    output_name,
)
from serving.backends.remote.pieces import MOST_PIECES, PiecedInput
from serving.node.node import Node
from serving.node.relaying import NodesBelow, endpoint_below
from serving.node.stream_task import StreamTask, TracedRuns, read_input
from serving.node.version import Version
from serving.runtime.trace_context import TRACEPARENT, continued
from serving.transports.grpc.bounds import bounded_parser

if TYPE_CHECKING:
    pass


_PARSE = bounded_parser(pb.ModelInferRequest)
_NOT_YET = np.empty(0, np.float32)
"""Stands for an input that has not come yet, all of it."""


class _Coming(NamedTuple):
    """An open input of which pieces are missing."""

    pieces: PiecedInput
    own: list[int]
    """The workers of this node that run it once it is complete."""


class GatewayStream:
    """One gateway's stream: the inputs that workers run, and the messages to send."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, tuple[Version, StreamTask, asyncio.TimerHandle | None, TracedRuns | None]] = {}
        self._done: list[tuple[str, int, Scores | Cause, float]] = []
        self._coming: dict[str, _Coming] = {}
        self._below: NodesBelow | None = None
        self._messages: list[pb.ModelStreamInferResponse | None] = []
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while every input is answered and every answer is written."""
        self.idle.set()
        node.watchers.add(self._changed)

    def submit(self, version: Version, request: pb.ModelInferRequest) -> None:
        """Fan one input out.

        Args:
            version: the version whose workers run it.
            request: as the gateway sent it: an input, a piece of one, or the nodes below this one.

        Raises:
            RequestError: the input or a parameter is not valid.
        """
        if not request.inputs and self._of_a_tree(version, request):
            return
        workers = self._asked(request, version.workers)
        inputs = read_input(version, request, self._node.options.max_batch)
        version.submit(self._started(version, request, workers, inputs), workers)

    def send(self, message: pb.ModelStreamInferResponse | None) -> None:
        """Send a message; None ends the stream."""
        self._messages.append(message)
        self._wake.set()

    async def replies(self) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Yield messages as there are any; scores of one input that come while a message is written go out together."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._messages or self._done:
                if self._messages:
                    message = self._messages.pop(0)
                    if message is None:
                        return
                    yield message
                if self._done:
                    yield pb.ModelStreamInferResponse(infer_response=self._next())
            if not self._open:
                self.idle.set()

    def report_down(self) -> None:
        """Report every worker as down: the node is stopping."""
        for version in self._node.versions:
            for worker in version.up:
                self._changed(version.number, worker, up=False)

    def close(self) -> None:
        """Close every task: the gateway has disconnected."""
        self._node.watchers.discard(self._changed)
        for ticket in list(self._open):
            self._close(ticket)
        if self._below is not None:
            self._node.close_later(self._below.close())
        self.idle.set()  # a node that stops need not wait for a stream that has ended

    def _asked(self, request: pb.ModelInferRequest, known: Collection[int]) -> list[int]:
        """Close the requests that are no longer wanted; the workers that a new one asks, some of those known."""
        parameters = request.parameters
        for earlier in filter(None, parameters[CLOSED].string_param.split(",") if CLOSED in parameters else ()):
            self._close(earlier)
        if request.id in self._open:
            raise RequestError(f"id is {request.id!r}, expected one that no open request has")
        try:
            workers = [int(w) for w in parameters[WORKERS].string_param.split(",")]
        except ValueError:
            workers = []
        if not workers or not set(workers) <= set(known):
            raise RequestError(f"{WORKERS}: expected some of {', '.join(map(str, sorted(known)))}")
        return workers

    def _started(
        self, version: Version, request: pb.ModelInferRequest, workers: Sequence[int], inputs: Inputs
    ) -> StreamTask:
        """Open a task for these workers, which are this node's or below it."""
        parameters = request.parameters
        ticket, left, runs = request.id, set(workers), self._traced(version, parameters)
        own = version.own

        def tell(worker: int, outcome: Scores | Cause, seconds: float) -> None:
            if runs is not None and worker in own:
                runs.add(worker, outcome, seconds)
            self._done.append((ticket, worker, outcome, seconds))
            left.discard(worker)
            if worker in own:
                version.ended(task, worker)
            if not left:
                self._close(ticket)
            self._wake.set()

        self.idle.clear()
        task = StreamTask(inputs, version.bundle.merge_plan.position, tell)
        timeout = parameters[TIMEOUT].int64_param if TIMEOUT in parameters else 0
        timer = self._loop.call_later(timeout / 1e6, self._close, ticket) if timeout > 0 else None
        self._open[ticket] = version, task, timer, runs
        return task

    def _of_a_tree(self, version: Version, request: pb.ModelInferRequest) -> bool:
        """Take a message of a broadcast tree; False where it is none."""
        parameters = request.parameters
        if RELAY in parameters:
            security = self._node.options.relay
            if security is None or self._below is not None:
                raise RequestError(f"{RELAY}: expected once, to a node with --relay")
            tree, subnets = parameters[RELAY].string_param, parameters[SUBNETS].string_param
            self._below = NodesBelow(version, tree, subnets, security, self._node.options.max_batch)
            return True
        if MEASURE in parameters:
            self._measure(request.id, parameters[MEASURE].string_param)
            return True
        if PIECES not in parameters:
            return False
        if (count := parameters[PIECES].int64_param) != 0:
            self._begin(version, request, count)
        coming = self._coming.get(request.id)
        if coming is not None:  # else it is closed: the gateway does not want it any more
            try:
                self._add(version, request, coming)
            except RequestError:
                self._close(request.id)
                raise
        return True

    def _measure(self, ticket: str, to: str) -> None:
        """Answer at once, or once the link to another node is measured."""
        if not to:
            self._answer(ticket, None)
        elif (security := self._node.options.relay) is None:
            raise RequestError(f"{MEASURE}: expected a node with --relay to measure its link to {to}")
        else:
            link = measure(endpoint_below(to, security), self._node.name)
            self._node.close_later(self._measured(ticket, link))

    async def _measured(self, ticket: str, link: Coroutine[Any, Any, tuple[float, float]]) -> None:
        try:
            self._answer(ticket, await link)
        except SensaiError as error:
            reply = pb.ModelInferResponse(id=ticket)
            self.send(pb.ModelStreamInferResponse(error_message=str(error), infer_response=reply))

    def _answer(self, ticket: str, link: tuple[float, float] | None) -> None:
        reply = pb.ModelInferResponse(model_name=self._node.name, id=ticket)
        if link is not None:
            reply.parameters[LATENCY].double_param, reply.parameters[RATE].double_param = link
        self.send(pb.ModelStreamInferResponse(infer_response=reply))

    def _begin(self, version: Version, request: pb.ModelInferRequest, count: int) -> None:
        """Open an input that comes in pieces, and hand it on to the nodes below whose workers it asks."""
        below = frozenset[int]() if self._below is None else self._below.workers
        workers = self._asked(request, version.own | below)
        if not 0 < count <= MOST_PIECES:
            raise RequestError(f"{PIECES} is {count}, expected 1 to {MOST_PIECES}")
        parameters = request.parameters
        timeout_s = parameters[TIMEOUT].int64_param / 1e6 if TIMEOUT in parameters else None
        trace = parameters[TRACEPARENT].string_param if TRACEPARENT in parameters else None
        pieces = PiecedInput(count, timeout_s, trace)
        self._coming[request.id] = _Coming(pieces, [worker for worker in workers if worker in version.own])
        task = self._started(version, request, workers, _NOT_YET)
        if self._below is not None and (its := [worker for worker in workers if worker in below]):
            self._below.relay(task, pieces, its)

    def _add(self, version: Version, request: pb.ModelInferRequest, coming: _Coming) -> None:
        """Take a piece; with the last the workers of this node run the input."""
        if len(request.raw_input_contents) != 1:
            raise RequestError(f"expected one piece in raw_input_contents, not {len(request.raw_input_contents)}")
        pieces = coming.pieces
        pieces.add(request.raw_input_contents[0])
        if pieces.bytes > (most := self._node.largest_message_bytes):
            raise RequestError(f"the pieces have {pieces.bytes} bytes, expected at most {most}")
        if not pieces.complete:
            return
        del self._coming[request.id]
        whole = _PARSE(pieces.joined())
        if isinstance(whole, RequestError):
            raise whole
        _, task, _, _ = self._open[request.id]
        task.inputs = read_input(version, whole, self._node.options.max_batch)
        version.submit(task, coming.own)

    def _next(self) -> pb.ModelInferResponse:
        """Make one reply of all the scores and failures of the oldest input that has any."""
        ticket = self._done[0][0]
        mine = [entry for entry in self._done if entry[0] == ticket]
        self._done = [entry for entry in self._done if entry[0] != ticket]
        reply = pb.ModelInferResponse(model_name=self._node.name, id=ticket)
        took, failed = [], []
        for _, worker, outcome, seconds in mine:
            if isinstance(outcome, Cause):
                failed.append(f"{worker}:{outcome.value}")
                continue
            reply.outputs.add(name=output_name(worker), datatype="FP32", shape=outcome.shape)
            reply.raw_output_contents.append(outcome.tobytes())
            took.append(str(round(seconds * 1e6)))
        if took:
            reply.parameters[RUN_US].string_param = ",".join(took)
        if failed:
            reply.parameters[FAILED].string_param = ",".join(failed)
        return reply

    def _close(self, ticket: str) -> None:
        if ticket not in self._open:
            return
        version, task, timer, runs = self._open.pop(ticket)
        self._coming.pop(ticket, None)
        task.closed = True
        version.ended(task)
        if runs is not None:
            runs.send()
        if timer is not None:
            timer.cancel()

    def _traced(self, version: Version, parameters: Mapping[str, Any]) -> TracedRuns | None:
        """Follow a request that belongs to a sampled trace, where this node sends any."""
        if self._node.otlp is None or TRACEPARENT not in parameters:
            return None
        trace = continued(parameters[TRACEPARENT].string_param)
        return None if trace is None or not trace.sampled else TracedRuns(self._node.otlp, trace, version)

    def _changed(self, version: str, worker: int, up: bool) -> None:
        reply = pb.ModelInferResponse(model_name=self._node.name, model_version=version)
        reply.parameters[UP if up else DOWN].string_param = str(worker)
        self.send(pb.ModelStreamInferResponse(infer_response=reply))
