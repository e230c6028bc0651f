"""Remote workers over gRPC: one watched channel, with one stream for all workers of a node, else one per worker."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2 as config_pb
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from sensai_serve.errors import BundleError, InputError, ServingError
from sensai_serve.input_spec import DATATYPES
from sensai_serve.manifest import Manifest
from sensai_serve.remote_names import BUNDLE, model_name
from serving.backends import Cause, Task
from serving.backends.remote.branch import Branch, digest_of, encode
from serving.backends.remote.identity import ModelDescription, version_for
from serving.backends.remote.message import RELAYS, TAKES_PIECES, TREE_VERSION, WORKERS, EncodedInput, below
from serving.backends.remote.pieces import PiecedInput
from serving.backends.remote.server import CONNECT_S, QUIET_S, SILENT_S, WorkerReports
from serving.backends.remote.stream import NodeStream, WorkerStream
from serving.runtime.endpoint import WorkerEndpoint, read
from serving.security.tls import client_context

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Do not share subchannels: a new connection must not wait for the backoff of the broken one before it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


def open_channel(endpoint: WorkerEndpoint) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """A channel to a server, not connected yet, and the metadata that every call shows.

    Raises:
        InputError: a file of its security cannot be used.
    """
    security = endpoint.security
    token = security.token()
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    options = [*_OPTIONS, *endpoint.keepalive.arguments()]
    if not endpoint.encrypted:
        return grpc.aio.insecure_channel(endpoint.address, options=options), metadata
    client_context(security)  # says what is wrong with the files; gRPC's library would not
    pem = [None if path is None else read(path) for path in (security.ca, security.key, security.cert)]
    return grpc.aio.secure_channel(endpoint.address, grpc.ssl_channel_credentials(*pem), options=options), metadata


class RemoteGrpcConnection:
    """See `serving.backends.remote.server.RemoteConnection`."""

    def __init__(
        self,
        endpoint: WorkerEndpoint,
        models: dict[int, str],
        manifest: Manifest,
        max_batch: int,
        reports: WorkerReports,
        branches: Sequence[Branch] = (),
    ) -> None:
        """Nothing is connected before `open`.

        Args:
            endpoint: the server.
            models: the model of each worker there; an empty name for the usual one.
            manifest: the manifest of the bundle that the workers belong to.
            max_batch: the most inputs in one task.
            reports: told of changes of single workers.
            branches: the nodes that the server is to hand inputs on to.
        """
        self.takes_pieces = self.relays = False
        self._branches = branches
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._endpoint = endpoint
        self._models = models
        self._manifest = manifest
        self._max_batch = max_batch
        self._reports = reports
        self._channel: Any = None
        self._stub: Any = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._is_node = False
        self._nodes: dict[str, NodeStream] = {}  # one for each version of the bundle
        self._alone: dict[int, WorkerStream] = {}
        self._stream_of: dict[int, NodeStream] = {}
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and find out whether the server is a node. See `RemoteConnection`."""
        self._channel, self._metadata = open_channel(self._endpoint)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=CONNECT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            if "Socket closed" in reason:  # what a server that expects TLS, or another certificate, looks like
                hint = "it may not accept this client's certificate" if self._endpoint.encrypted else "it may speak TLS"
                reason = f"closed the connection: {hint}"
            absent = reason.startswith(("cannot be reached", "does not answer"))
            raise (ServingError if absent else InputError)(f"{self._endpoint.server} {reason}") from None
        try:
            whole = await self._config(self._manifest.name)
            self._is_node = WORKERS in whole.parameters and BUNDLE in whole.parameters
            self.takes_pieces, self.relays = (
                key in whole.parameters and whole.parameters[key].string_value == TREE_VERSION
                for key in (TAKES_PIECES, RELAYS)
            )
        except grpc.aio.AioRpcError:
            self._is_node = False  # no model of the bundle's name: not a node
        self._watching = asyncio.create_task(self._watch())

    async def check(self, worker: int) -> None:
        """Check a worker against the bundle, and open a stream to it. See `RemoteConnection`."""
        named = self._models[worker]
        model = named or model_name(self._manifest, worker)
        where = f"{model} at {self._endpoint.server}"
        try:
            config = await self._config(model)
            version = version_for(self._manifest, worker, self._max_batch, where, _described(config))
            request = pb.ModelReadyRequest(name=model, version=version)
            reply = await self._stub.ModelReady(request, timeout=CONNECT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise BundleError(f"worker {worker}: {self._endpoint.server} serves no model {model!r}") from None
            raise ServingError(f"worker {worker}: {self._endpoint.server} {_reason(error)}") from None
        if not reply.ready:
            raise ServingError(f"worker {worker}: {where} is not ready")
        if self._is_node and not named:
            if version not in self._nodes:
                self._nodes[version] = NodeStream(
                    self._call(), self._manifest.name, version, self._reports, self._break, self._below()
                )
            self._stream_of[worker] = self._nodes[version]
            return
        if worker in self._alone:
            await self._alone.pop(worker).close()
        self._alone[worker] = WorkerStream(self._call(), worker, model, version, self._reports, self._break)

    def submit(self, task: Task, message: EncodedInput, workers: Sequence[int]) -> None:
        """See `RemoteConnection`."""
        together: dict[int, tuple[NodeStream, list[int]]] = {}
        for worker in workers:
            if (stream := self._stream_of.get(worker)) is not None:
                together.setdefault(id(stream), (stream, []))[1].append(worker)
            elif worker in self._alone:
                self._alone[worker].submit(task, message)
            else:
                task.fail(worker, Cause.DEAD)
        for stream, its in together.values():
            stream.submit(task, message, its)

    def relay(self, task: Task, message: PiecedInput, workers: Sequence[int]) -> None:
        """See `RemoteConnection`."""
        if len(self._nodes) == 1:
            next(iter(self._nodes.values())).relay(task, message, workers)
        else:  # its workers are of two versions of the bundle: no one stream reaches all that are below
            for worker in workers:
                task.fail(worker, Cause.DEAD)

    async def close(self) -> None:
        """See `RemoteConnection`."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(s.close() for s in self._nodes.values()), *(s.close() for s in self._alone.values()))
        if self._channel is not None:
            await self._channel.close()

    def _below(self) -> bytes:
        """What a new stream tells the server first."""
        if not self._branches or not self.relays:
            return b""
        return below(encode(self._branches), digest_of(self._manifest))

    def _call(self) -> Any:
        return self._channel.stream_stream(STREAM)(metadata=self._metadata)

    def _break(self, reason: str) -> None:
        if not self.broken.done():
            self.broken.set_result(reason)

    async def _watch(self) -> None:
        """Ask a quiet server whether it is live: a cut network reports nothing."""
        while True:
            await asyncio.sleep(QUIET_S)
            pipes = [*(s.pipe for s in self._nodes.values()), *(s.pipe for s in self._alone.values())]
            if time.monotonic() - max((p.heard for p in pipes), default=0.0) < QUIET_S:
                continue
            try:
                await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=SILENT_S, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                self._break(_reason(error))
                return

    async def _config(self, model: str) -> Any:
        request = pb.ModelConfigRequest(name=model)
        return (await self._stub.ModelConfig(request, timeout=CONNECT_S, metadata=self._metadata)).config


def _described(config: Any) -> ModelDescription:
    fp32 = config_pb.DataType.Value("TYPE_FP32")
    taken = [config_pb.DataType.Value(f"TYPE_{datatype}") for datatype in DATATYPES]
    return ModelDescription(
        parameters={key: value.string_value for key, value in config.parameters.items()},
        inputs={t.name: tuple(t.dims) for t in config.input if t.data_type in taken},
        outputs={t.name: tuple(t.dims) for t in config.output if t.data_type == fp32},
        max_batch=config.max_batch_size,
    )


def _reason(error: Any) -> str:
    """Say why a call failed, in a phrase that follows the server's name."""
    code, details = error.code(), " ".join((error.details() or "").split())
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return "refuses access: the token is missing or wrong"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "does not answer"
    if "CERTIFICATE_VERIFY_FAILED" in details or "certificate" in details.lower():
        return "cannot be trusted: its certificate is not for that name or not of our authority, or it rejects ours"
    if "handshake" in details.lower() or "SSL" in details:
        return f"fails the TLS handshake, expected grpc:// for a server without TLS ({_last(details)})"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"cannot be reached ({_last(details)})"
    return f"refuses: {details or code.name}"


def _last(details: str) -> str:
    """Return the last cause in gRPC's chain of causes."""
    cause = re.sub(r"^.*last error: ", "", details).rpartition(": ")[2]
    return re.sub(r"\s*\(\d+\)$", "", cause) or details
