"""GRPCInferenceService of a node: each worker is a model of its own, and one more model is all of them together.

A gateway opens one `ModelStreamInfer` to the model that is named as the bundle, and sends an input once for all of this
node's workers. Scores go back as the workers end, those that end together in one message, so that a straggler does not
hold up the others. `serving.backends.remote.message` describes the parameters of these messages.
"""
# ruff: noqa: N802 - the methods are called as the protocol calls them

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import sensai_serve
from sensai_serve.errors import OverloadedError, RequestError, UnknownModelError, WorkerError
from sensai_serve.remote_names import BUNDLE, SCORES, WORKER, checksum_key, model_name
from serving.backends import Cause, Scores
from serving.backends.remote.message import RELAYS, TAKES_PIECES, TREE_VERSION, WORKERS, output_name
from serving.node.gateway_stream import GatewayStream
from serving.node.node import Node
from serving.node.stream_task import StreamTask, read_input
from serving.node.version import Version
from serving.v2.metadata import data_type
from serving.v2.status import describe

PLATFORM = "sensai_node"


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The calls that a gateway, a probe, or a tritonclient makes of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._streams: set[GatewayStream] = set()
        self._asked = 0  # requests to single workers that are being answered
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def leave(self, drain_s: float) -> None:
        """Tell the gateways that the workers go, and wait at most `drain_s` seconds until all requests are answered."""
        for stream in self._streams:
            stream.report_down()
        ends = [asyncio.create_task(end.wait()) for end in (self._quiet, *(stream.idle for stream in self._streams))]
        _, late = await asyncio.wait(ends, timeout=drain_s)
        for task in late:
            task.cancel()

    async def ServerLive(self, request: pb.ServerLiveRequest, context: grpc.aio.ServicerContext) -> Message:
        """Report the node as live: it answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: grpc.aio.ServicerContext) -> Message:
        """Report whether every worker is up."""
        return pb.ServerReadyResponse(ready=self._node.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext) -> Message:
        """Report whether a worker is up; an unknown one is not."""
        try:
            version, worker = self._find(request.name, request.version)
        except UnknownModelError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=version.ready if worker is None else worker in version.up)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext) -> Message:
        """Report the name and the version of this software."""
        return pb.ServerMetadataResponse(name="sensai-node", version=sensai_serve.__version__)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext) -> Message:
        """Describe a model's tensors."""
        version, worker = await self._found(request.name, request.version, context)
        reply = pb.ModelMetadataResponse(name=request.name, platform=PLATFORM)
        reply.versions.extend(v.number for v in self._node.versions)
        for spec in version.manifest.inputs:
            reply.inputs.add(name=spec.name, datatype=spec.dtype, shape=[-1, *spec.shape])
        for name, width in _outputs(version, worker):
            reply.outputs.add(name=name, datatype="FP32", shape=[-1, width])
        return reply

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: grpc.aio.ServicerContext) -> Message:
        """Describe a model: its bundle and worker, and the SHA-256 of its subnet in each version."""
        version, worker = await self._found(request.name, request.version, context)
        parameters = {BUNDLE: version.manifest.name}
        if worker is None:
            parameters[WORKERS] = ",".join(map(str, version.workers))
            parameters[TAKES_PIECES] = TREE_VERSION
            if self._node.options.relay is not None:
                parameters[RELAYS] = TREE_VERSION
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
            "input": [
                {"name": spec.name, "data_type": data_type(spec.dtype), "dims": list(spec.shape)}
                for spec in version.manifest.inputs
            ],
            "output": [{"name": n, "data_type": "TYPE_FP32", "dims": [k]} for n, k in _outputs(version, worker)],
            "model_transaction_policy": {"decoupled": worker is None},
            "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        }
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: grpc.aio.ServicerContext) -> Message:
        """List every worker of every version."""
        reply = pb.RepositoryIndexResponse()
        for version in self._node.versions:
            for name, worker in version.worker_of.items():
                if not request.ready or worker in version.up:
                    state = "READY" if worker in version.up else "UNAVAILABLE"
                    reply.models.add(name=name, version=version.number, state=state)
        return reply

    async def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> Message:
        """Run one worker."""
        try:
            return await self._infer(request)
        except Exception as error:
            status, message = describe(error)
            await context.abort(grpc.StatusCode[status.grpc], message)
            raise  # abort has raised

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest | RequestError], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Message]:
        """Take inputs and send scores as workers end."""
        stream = GatewayStream(self._node)
        self._streams.add(stream)
        reading = asyncio.create_task(self._read(requests, stream))
        try:
            async for reply in stream.replies():
                yield reply
        finally:
            self._streams.discard(stream)
            stream.close()
            reading.cancel()

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest | RequestError], stream: GatewayStream) -> None:
        try:
            async for request in requests:
                try:
                    if isinstance(request, RequestError):
                        raise request
                    if request.model_name == self._node.name:
                        stream.submit(self._node.version(request.model_version), request)
                    else:
                        stream.send(pb.ModelStreamInferResponse(infer_response=await self._infer(request)))
                except Exception as error:
                    _, message = describe(error)
                    reply = pb.ModelInferResponse(id=getattr(request, "id", ""))
                    stream.send(pb.ModelStreamInferResponse(error_message=message, infer_response=reply))
        finally:
            stream.send(None)

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        self._asked += 1
        self._quiet.clear()
        try:
            return await self._run(request)
        finally:
            self._asked -= 1
            if not self._asked:
                self._quiet.set()

    async def _run(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        version, worker = self._find(request.model_name, request.model_version)
        if worker is None:
            raise RequestError(
                f"{request.model_name} answers streams, expected the model of one worker, such as {_example(version)}"
            )
        answered: asyncio.Future[Scores | Cause] = asyncio.get_running_loop().create_future()

        def tell(number: int, outcome: Scores | Cause, _: float) -> None:
            version.ended(task, number)
            if not answered.done():
                answered.set_result(outcome)

        inputs = read_input(version, request, self._node.options.max_batch)
        task = StreamTask(inputs, version.bundle.merge_plan.position, tell)
        version.submit(task, [worker])
        try:
            outcome = await answered
        finally:
            task.closed = True
            version.ended(task)
        if isinstance(outcome, Cause):
            kind = OverloadedError if outcome is Cause.FULL else WorkerError
            raise kind(f"{request.model_name} gave no scores ({outcome.value})")
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version=version.number, id=request.id)
        reply.outputs.add(name=SCORES, datatype="FP32", shape=outcome.shape)
        reply.raw_output_contents.append(outcome.tobytes())
        return reply

    def _find(self, name: str, number: str) -> tuple[Version, int | None]:
        """Find the version and the worker of a model; no worker for the model that is all of them."""
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


def name_list(version: Version) -> str:
    """List the models of a version, for errors."""
    names = list(version.worker_of)
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _example(version: Version) -> str:
    return model_name(version.manifest, version.workers[0])


def _outputs(version: Version, worker: int | None) -> list[tuple[str, int]]:
    widths: dict[int, Any] = {w: len(version.manifest.subnets[w].classes) for w in version.workers}
    return [(output_name(w), k) for w, k in widths.items()] if worker is None else [(SCORES, widths[worker])]
