"""GRPCInferenceService of a node: each worker a model of its own, and all of them together behind one stream.

A gateway opens one `ModelStreamInfer` to the model that is called as the bundle, and sends an input once for all of
this node's workers. Scores come back as the workers end, those that end together in one message: a straggler holds up
nobody. What else is said on it stands in `serving.remote.message`.
"""
# ruff: noqa: N802 - the methods are called as the protocol calls them

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import sensai_serve
from sensai_serve.errors import OverloadedError, RequestError, UnknownModelError, WorkerError
from sensai_serve.remote import BUNDLE, SCORES, WORKER, checksum_key, model_name
from serving.job import Cause, Scores
from serving.remote.message import CLOSED, DOWN, FAILED, RUN_US, TIMEOUT, UP, WORKERS, output_name
from serving.remote.node import Node, Version
from serving.transports._status import describe
from serving.v2.tensors import check_input, from_bytes

PLATFORM = "sensai_node"


class Asked:
    """One input on its way through this node's workers. See `serving.job.Task`."""

    __slots__ = ("_loop", "_tell", "_thread", "closed", "inputs")
    expires: float | None = None

    def __init__(self, inputs: npt.NDArray[np.float32], tell: Callable[[int, Scores | Cause, float], None]) -> None:
        """Make one.

        Args:
            inputs: FP32 [N, *shape].
            tell: told of each worker its scores, or why there are none, and the seconds it took, on the event loop.
        """
        self.inputs = inputs
        self.closed = False
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

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


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The calls that a gateway, a probe, or a tritonclient makes of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._conversations: set[Conversation] = set()

    async def leave(self, drain_s: float) -> None:
        """Tell the gateways that the workers go, and wait until what they have asked is answered, not for ever."""
        for conversation in self._conversations:
            conversation.leave()
        ends = [asyncio.create_task(conversation.idle.wait()) for conversation in self._conversations]
        if ends:
            _, late = await asyncio.wait(ends, timeout=drain_s)
            for task in late:
                task.cancel()

    async def ServerLive(self, request: pb.ServerLiveRequest, context: grpc.aio.ServicerContext) -> Message:
        """It answers, so it lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: grpc.aio.ServicerContext) -> Message:
        """Whether every worker is up."""
        return pb.ServerReadyResponse(ready=self._node.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext) -> Message:
        """Whether a worker is up; an unknown one is not."""
        try:
            version, worker = self._find(request.name, request.version)
        except UnknownModelError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=version.ready if worker is None else worker in version.up)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext) -> Message:
        """Name and version."""
        return pb.ServerMetadataResponse(name="sensai-node", version=sensai_serve.__version__)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext) -> Message:
        """A model's tensors."""
        version, worker = await self._found(request.name, request.version, context)
        spec = version.manifest.input
        reply = pb.ModelMetadataResponse(name=request.name, platform=PLATFORM)
        reply.versions.extend(v.number for v in self._node.versions)
        reply.inputs.add(name=spec.name, datatype=spec.dtype, shape=[-1, *spec.shape])
        for name, width in _outputs(version, worker):
            reply.outputs.add(name=name, datatype="FP32", shape=[-1, width])
        return reply

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: grpc.aio.ServicerContext) -> Message:
        """A model's configuration: whose worker it is, and the SHA-256 of its subnet in each version."""
        version, worker = await self._found(request.name, request.version, context)
        spec = version.manifest.input
        parameters = {BUNDLE: version.manifest.name}
        if worker is None:
            parameters[WORKERS] = ",".join(map(str, version.workers))
        else:
            parameters[WORKER] = str(worker)
            for each in self._node.versions:
                if worker < len(each.manifest.subnets):
                    parameters[checksum_key(each.number)] = each.manifest.subnets[worker].sha256
        config = {
            "name": request.name,
            "platform": PLATFORM,
            "backend": "sensai",
            "max_batch_size": self._node.options.max_batch,
            "input": [{"name": spec.name, "data_type": "TYPE_FP32", "dims": list(spec.shape)}],
            "output": [{"name": n, "data_type": "TYPE_FP32", "dims": [k]} for n, k in _outputs(version, worker)],
            "model_transaction_policy": {"decoupled": worker is None},
            "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        }
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: grpc.aio.ServicerContext) -> Message:
        """Every worker of every version."""
        reply = pb.RepositoryIndexResponse()
        for version in self._node.versions:
            for name, worker in version.worker_of.items():
                if not request.ready or worker in version.up:
                    state = "READY" if worker in version.up else "UNAVAILABLE"
                    reply.models.add(name=name, version=version.number, state=state)
        return reply

    async def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> Message:
        """One worker's scores."""
        try:
            return await self._infer(request)
        except Exception as error:
            status, message = describe(error)
            await context.abort(grpc.StatusCode[status.grpc], message)
            raise  # abort has raised

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Message]:
        """Inputs in, scores out as they come."""
        conversation = Conversation(self._node)
        self._conversations.add(conversation)
        reading = asyncio.create_task(self._read(requests, conversation))
        try:
            async for reply in conversation.replies():
                yield reply
        finally:
            self._conversations.discard(conversation)
            conversation.end()
            reading.cancel()

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest], conversation: Conversation) -> None:
        try:
            async for request in requests:
                try:
                    if request.model_name == self._node.name:
                        conversation.ask(self._node.version(request.model_version), request)
                    else:
                        conversation.say(pb.ModelStreamInferResponse(infer_response=await self._infer(request)))
                except Exception as error:
                    _, message = describe(error)
                    reply = pb.ModelInferResponse(id=request.id)
                    conversation.say(pb.ModelStreamInferResponse(error_message=message, infer_response=reply))
        finally:
            conversation.say(None)

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        version, worker = self._find(request.model_name, request.model_version)
        if worker is None:
            raise RequestError(f"{request.model_name} answers streams, expected one worker, say {_example(version)}")
        answered: asyncio.Future[Scores | Cause] = asyncio.get_running_loop().create_future()

        def tell(_: int, outcome: Scores | Cause, __: float) -> None:
            if not answered.done():
                answered.set_result(outcome)

        asked = Asked(read_input(version, request, self._node.options.max_batch), tell)
        version.submit(asked, [worker])
        try:
            outcome = await answered
        finally:
            asked.closed = True
        if isinstance(outcome, Cause):
            kind = OverloadedError if outcome is Cause.FULL else WorkerError
            raise kind(f"{request.model_name} gave no scores ({outcome.value})")
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version=version.number, id=request.id)
        reply.outputs.add(name=SCORES, datatype="FP32", shape=outcome.shape)
        reply.raw_output_contents.append(outcome.tobytes())
        return reply

    def _find(self, name: str, number: str) -> tuple[Version, int | None]:
        """The version and the worker of a model; no worker for the model that is all of them."""
        version = self._node.version(number)
        if name == version.manifest.name:
            return version, None
        if name not in version.worker_of:
            raise UnknownModelError(f"unknown model {name!r}, expected {name_list(version)}")
        return version, version.worker_of[name]

    async def _found(self, name: str, number: str, context: grpc.aio.ServicerContext) -> tuple[Version, int | None]:
        try:
            return self._find(name, number)
        except UnknownModelError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            raise


class Conversation:
    """One gateway's stream: the inputs that are with the workers, and what is to be said next."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._asked: dict[str, tuple[Asked, asyncio.TimerHandle | None]] = {}
        self._done: list[tuple[str, int, Scores | Cause, float]] = []
        self._messages: list[pb.ModelStreamInferResponse | None] = []
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        """Nothing that was asked is unanswered, and every answer is written."""
        self.idle.set()
        node.watchers.add(self._changed)

    def ask(self, version: Version, request: pb.ModelInferRequest) -> None:
        """Fan one input out.

        Raises:
            RequestError: an input or parameters that do not fit.
        """
        parameters = request.parameters
        for earlier in filter(None, parameters[CLOSED].string_param.split(",") if CLOSED in parameters else ()):
            self._close(earlier)
        if request.id in self._asked:
            raise RequestError(f"id is {request.id!r}, expected one that is not in use")
        try:
            workers = [int(w) for w in parameters[WORKERS].string_param.split(",")]
        except ValueError:
            workers = []
        if not workers or not set(workers) <= set(version.workers):
            raise RequestError(f"{WORKERS}: expected some of {', '.join(map(str, version.workers))}")
        inputs = read_input(version, request, self._node.options.max_batch)
        ticket, left = request.id, set(workers)

        def tell(worker: int, outcome: Scores | Cause, seconds: float) -> None:
            self._done.append((ticket, worker, outcome, seconds))
            left.discard(worker)
            if not left:
                self._close(ticket)
            self._wake.set()

        self.idle.clear()
        asked = Asked(inputs, tell)
        timeout = parameters[TIMEOUT].int64_param if TIMEOUT in parameters else 0
        timer = self._loop.call_later(timeout / 1e6, self._close, ticket) if timeout > 0 else None
        self._asked[ticket] = asked, timer
        version.submit(asked, workers)

    def say(self, message: pb.ModelStreamInferResponse | None) -> None:
        """A message of its own; None ends the stream."""
        self._messages.append(message)
        self._wake.set()

    async def replies(self) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """What there is to say, whenever there is; what has come while the last message was written is one."""
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
            if not self._asked:
                self.idle.set()

    def leave(self) -> None:
        """Every worker goes."""
        for version in self._node.versions:
            for worker in version.up:
                self._changed(version.number, worker, up=False)

    def end(self) -> None:
        """The gateway has gone, and with it whoever waits."""
        self._node.watchers.discard(self._changed)
        for ticket in list(self._asked):
            self._close(ticket)

    def _next(self) -> pb.ModelInferResponse:
        """All that has come of the oldest input."""
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
        asked, timer = self._asked.pop(ticket, (None, None))
        if asked is not None:
            asked.closed = True
        if timer is not None:
            timer.cancel()

    def _changed(self, version: str, worker: int, up: bool) -> None:
        reply = pb.ModelInferResponse(model_name=self._node.name, model_version=version)
        reply.parameters[UP if up else DOWN].string_param = str(worker)
        self.say(pb.ModelStreamInferResponse(infer_response=reply))


def read_input(version: Version, request: pb.ModelInferRequest, max_batch: int) -> npt.NDArray[np.float32]:
    """The request's one input, FP32 [N, *shape].

    Raises:
        RequestError: another name, datatype, shape or length.
    """
    spec = version.manifest.input
    if len(request.inputs) != 1 or len(request.raw_input_contents) != 1:
        raise RequestError(f"expected one input, {spec.name!r}, in raw_input_contents")
    given = request.inputs[0]
    shape = check_input(given.name, given.datatype, list(given.shape), spec, max_batch)
    return from_bytes(request.raw_input_contents[0], shape, spec)


def name_list(version: Version) -> str:
    """The models of a version, for errors."""
    names = list(version.worker_of)
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _example(version: Version) -> str:
    return model_name(version.manifest, version.workers[0])


def _outputs(version: Version, worker: int | None) -> list[tuple[str, int]]:
    widths: dict[int, Any] = {w: len(version.manifest.subnets[w].classes) for w in version.workers}
    return [(output_name(w), k) for w, k in widths.items()] if worker is None else [(SCORES, widths[worker])]
