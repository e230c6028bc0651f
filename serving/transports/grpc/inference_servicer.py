"""The service GRPCInferenceService: translates each call for the data plane, and errors to status codes."""
# ruff: noqa: N802 - the protocol names the methods

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from time import perf_counter
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.errors import RequestError, UnknownModelError
from serving.dataplane import DataPlane, cuda_memory
from serving.engine.gateway import Gateway
from serving.engine.intake.admission import CLIENT
from serving.engine.reply import Reply
from serving.runtime.trace_context import TRACEPARENT
from serving.telemetry.logs import begin_request
from serving.transports.grpc.bounds import MESSAGE_BYTES
from serving.transports.grpc.codec import decode, decode_named, encode, scalar
from serving.transports.grpc.turns import Turns
from serving.v2 import InferRequest, metadata
from serving.v2.status import describe
from serving.v2.tensors import outputs_of

STREAM_DEPTH = 8
"""Number of requests of one stream that are answered at a time; further ones are not read yet."""
REPLY_SHARE, REPLY_S = 0.1, 0.1
"""Fraction of a call's deadline, and the most seconds, that are kept for the reply to reach the client."""
STOPPING = "the server is stopping"
"""What clients are told of calls that come too late, and of streams that end with the server."""
_Method = Callable[["InferenceServicer", Any], Awaitable[Any]]


def _call(method: _Method) -> Callable[[InferenceServicer, Any, grpc.aio.ServicerContext], Awaitable[Any]]:
    """Make a unary call whose errors are status codes, and which is counted."""

    kind = "infer" if method.__name__ == "ModelInfer" else "other"

    async def call(self: InferenceServicer, request: Any, context: grpc.aio.ServicerContext) -> Any:
        started = perf_counter()
        self.identify(dict(context.invocation_metadata() or ()))
        CLIENT.set(context.peer())
        held = self._plane.bodies.hold()
        try:
            if isinstance(request, RequestError):
                raise request
            if kind == "infer":
                held.take(MESSAGE_BYTES.get())
                _bound(request, context.time_remaining())
            reply = await method(self, request)
        except Exception as error:
            status, message = describe(error)
            self.observe(kind, method.__name__, status.grpc, started)
            await context.abort(grpc.StatusCode[status.grpc], message)
        finally:
            held.release()
        self.observe(kind, method.__name__, "OK", started)
        return reply

    call.__doc__ = method.__doc__
    return call


def _identify(metadata: Mapping[str, Any]) -> None:
    begin_request(metadata.get("x-request-id"))


def _bound(request: pb.ModelInferRequest, remaining_s: float | None) -> None:
    """Lower the request's timeout to the call's deadline, less the time that the reply needs to reach the client."""
    parameters = request.parameters
    if remaining_s is None or ("timeout" in parameters and not parameters["timeout"].HasField("int64_param")):
        return
    within = max(1, int(1e6 * (remaining_s - min(REPLY_SHARE * remaining_s, REPLY_S))))
    given = parameters["timeout"].int64_param if "timeout" in parameters else 0  # 0 means no timeout
    if given >= 0:
        parameters["timeout"].int64_param = min(given, within) if given else within


class InferenceServicer:
    """Answers all calls of the service from one data plane."""

    def __init__(self, plane: DataPlane, turns: Turns) -> None:
        self._plane = plane
        self._models = plane.repository
        self._turns = turns
        self._otlp = plane.otlp
        self.identify = _identify if plane.otlp is None else self._identify_traced
        """Called with the metadata of each unary call."""
        self._readers: set[asyncio.Task[None]] = set()

    def _identify_traced(self, metadata: Mapping[str, Any]) -> None:
        assert self._otlp is not None
        self._otlp.arrived(metadata.get(TRACEPARENT))
        _identify(metadata)

    def observe(self, call: str, method: str, status: str, started: float) -> None:
        """Count a request that came at `started` (`time.perf_counter`)."""
        self._plane.telemetry.observe("grpc", call, method, status, started)

    @_call
    async def ServerLive(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Always true: the server answers."""
        return pb.ServerLiveResponse(live=True)

    @_call
    async def ServerReady(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Whether every model is ready."""
        return pb.ServerReadyResponse(ready=self._models.ready)

    @_call
    async def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Whether a model is ready; false for an unknown one."""
        try:
            return pb.ModelReadyResponse(ready=self._models.get(request.name, request.version).ready)
        except UnknownModelError:
            return pb.ModelReadyResponse(ready=False)

    @_call
    async def ServerMetadata(self, _: pb.ServerMetadataRequest) -> Message:
        """The server's name, version and extensions."""
        return ParseDict(
            metadata.server_metadata(shares_memory=self._plane.regions.allowed), pb.ServerMetadataResponse()
        )

    @_call
    async def ModelMetadata(self, request: pb.ModelMetadataRequest) -> Message:
        """A model's inputs and outputs."""
        gateway = self._models.get(request.name, request.version)
        described = metadata.model_metadata(gateway.manifest, gateway.version, texts=gateway.takes_texts)
        return ParseDict(described, pb.ModelMetadataResponse(), ignore_unknown_fields=True)

    @_call
    async def ModelConfig(self, request: pb.ModelConfigRequest) -> Message:
        """A model's configuration in Triton's form."""
        gateway = self._models.get(request.name, request.version)
        config = metadata.model_config(gateway.manifest, gateway.options.max_batch, texts=gateway.takes_texts)
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    @_call
    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Answer one request."""
        return await self._infer(request)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest | RequestError], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer requests in their order. An error is sent as a reply, and the stream goes on.

        When the server stops the stream ends with an error, after the replies to what has begun.
        """
        CLIENT.set(context.peer())
        traceparent = dict(context.invocation_metadata() or ()).get(TRACEPARENT)
        replies: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue()
        slots = asyncio.Semaphore(STREAM_DEPTH)

        async def read() -> None:
            try:
                async for request in requests:
                    await slots.acquire()
                    answering = self._stream_reply(request, MESSAGE_BYTES.get(), traceparent)
                    replies.put_nowait(asyncio.create_task(answering))
            finally:
                replies.put_nowait(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        try:
            while (reply := await replies.get()) is not None:
                yield await reply
                slots.release()
            if reader.cancelled():
                await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
            await reader
        finally:
            self._readers.discard(reader)
            reader.cancel()
            while not replies.empty():
                if (reply := replies.get_nowait()) is not None:
                    reply.cancel()

    def end_streams(self) -> None:
        """Read no more requests of open streams, and end each when what has begun is answered: the server stops."""
        for reader in self._readers:
            reader.cancel()

    @_call
    async def ModelStatistics(self, request: pb.ModelStatisticsRequest) -> Message:
        """Statistics of one model, or of all."""
        return ParseDict(self._plane.statistics(request.name, request.version), pb.ModelStatisticsResponse())

    @_call
    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest) -> Message:
        """Every model and its state."""
        return ParseDict({"models": await self._plane.index(only_ready=request.ready)}, pb.RepositoryIndexResponse())

    @_call
    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest) -> Message:
        """Load a model."""
        await self._plane.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    @_call
    async def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadRequest) -> Message:
        """Unload a model."""
        await self._plane.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    @_call
    async def TraceSetting(self, request: pb.TraceSettingRequest) -> Message:
        """Change trace settings and return them. A setting without values returns to its default."""
        change: dict[str, Any] = {}
        for key, setting in request.settings.items():
            values = list(setting.value)
            change[key] = (values if key == "trace_level" else values[0]) if values else None
        settings = self._plane.change_tracing(change, request.model_name)
        lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
        return ParseDict(
            {"settings": {key: {"value": value} for key, value in lists.items()}}, pb.TraceSettingResponse()
        )

    @_call
    async def LogSettings(self, request: pb.LogSettingsRequest) -> Message:
        """Change log settings and return them."""
        change = {key: scalar(value) for key, value in request.settings.items()}
        logs = self._plane.logs
        logs.settings = logs.settings.changed(change)
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        return ParseDict(
            {"settings": {key: {kinds[type(value)]: value} for key, value in asdict(logs.settings).items()}},
            pb.LogSettingsResponse(),
        )

    @_call
    async def SystemSharedMemoryStatus(self, request: pb.SystemSharedMemoryStatusRequest) -> Message:
        """All registered regions, or one of them."""
        regions = self._plane.regions
        chosen = {request.name: regions.get(request.name)} if request.name else regions.all()
        reply = pb.SystemSharedMemoryStatusResponse()
        for name, region in chosen.items():
            reply.regions[name].CopyFrom(
                reply.RegionStatus(name=name, key=region.key, offset=region.offset, byte_size=region.byte_size)
            )
        return reply

    @_call
    async def SystemSharedMemoryRegister(self, request: pb.SystemSharedMemoryRegisterRequest) -> Message:
        """Register a region."""
        self._plane.regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    @_call
    async def SystemSharedMemoryUnregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> Message:
        """Unregister a region, or all of them."""
        if request.name:
            self._plane.regions.unregister(request.name)
        else:
            self._plane.regions.unregister_all()
        return pb.SystemSharedMemoryUnregisterResponse()

    @_call
    async def CudaSharedMemoryStatus(self, _: pb.CudaSharedMemoryStatusRequest) -> Message:
        """CUDA shared memory is not supported."""
        raise cuda_memory()

    @_call
    async def CudaSharedMemoryRegister(self, _: pb.CudaSharedMemoryRegisterRequest) -> Message:
        """CUDA shared memory is not supported."""
        raise cuda_memory()

    @_call
    async def CudaSharedMemoryUnregister(self, _: pb.CudaSharedMemoryUnregisterRequest) -> Message:
        """CUDA shared memory is not supported."""
        raise cuda_memory()

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        await self._turns.take(CLIENT.get())
        plane = self._plane
        gateway: Gateway = self._models.get(request.model_name, request.model_version)
        manifest, most = gateway.manifest, gateway.options.max_batch
        plain, outputs = manifest.plain_input, outputs_of(manifest.task)

        def read() -> InferRequest:
            if plain is None:
                return decode_named(request, manifest.inputs, most, plane.regions, manifest.tokenizer, outputs)
            return decode(request, plain, most, plane.regions, outputs)

        def write(asked: InferRequest, reply: Reply) -> pb.ModelInferResponse:
            return encode(asked, reply.answer, name=gateway.name, version=gateway.version, labels=manifest.labels)

        return await plane.infer(gateway, read, write)

    async def _stream_reply(
        self, request: pb.ModelInferRequest | RequestError, size: int, traceparent: str | None
    ) -> pb.ModelStreamInferResponse:
        started, held = perf_counter(), self._plane.bodies.hold()
        name = "" if isinstance(request, RequestError) else request.id
        begin_request(name or None)
        if self._otlp is not None:
            self._otlp.arrived(traceparent)
        try:
            if isinstance(request, RequestError):
                raise request
            held.take(size)
            reply = await self._infer(request)
        except Exception as error:
            status, message = describe(error)
            self.observe("stream", "ModelStreamInfer", status.grpc, started)
            return pb.ModelStreamInferResponse(error_message=message, infer_response=pb.ModelInferResponse(id=name))
        finally:
            held.release()
        self.observe("stream", "ModelStreamInfer", "OK", started)
        reply.parameters["triton_final_response"].bool_param = True  # Triton marks the last reply to a request so
        return pb.ModelStreamInferResponse(infer_response=reply)
