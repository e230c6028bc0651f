"""The gRPC listener: grpc.aio on the server's event loop, with the health and reflection services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sensai_serve.errors import InputError, RequestError
from serving.address import Address, UnixAddress, parse_address
from serving.dataplane import DataPlane
from serving.settings import Settings
from serving.transports import Listener
from serving.transports._unix_socket import socket_file
from serving.transports.grpc.bounds import BoundedServer, bounded_parser, requests_of
from serving.transports.grpc.credentials import server_credentials
from serving.transports.grpc.health_servicer import HealthServicer
from serving.transports.grpc.inference_servicer import InferenceServicer
from serving.transports.grpc.roles import Roles
from serving.transports.grpc.turns import Turns
from serving.v2.body_bound import BodyBound, as_protobuf

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


@dataclass(frozen=True)
class InferenceServer:
    """A gRPC server with all services. It listens nowhere yet."""

    server: grpc.aio.Server
    servicer: InferenceServicer
    """Answers the calls of the inference service."""
    health: HealthServicer
    turns: Turns
    """Has to be closed after the server has stopped."""
    parse_infer: Callable[[bytes], Message | RequestError]
    """Parses the requests of ModelInfer; see `serving.transports.grpc.bounds.bounded_parser`."""

    async def stop(self, drain_s: float) -> None:
        """Take no more calls, and give those that are being answered some time.

        Args:
            drain_s: that time in seconds.
        """
        self.servicer.end_streams()
        self.health.end_streams()
        await self.server.stop(drain_s)


def make_server(plane: DataPlane, settings: Settings) -> InferenceServer:
    """Make a server for one data plane."""
    limits, keepalive = settings.limits, settings.grpc_keepalive
    server = grpc.aio.server(
        interceptors=[] if plane.access.lets_all else [Roles(plane.access, SERVICE)],
        options=[
            ("grpc.so_reuseport", 0),  # a port in use is an error; by default it would be shared
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.max_allowed_incoming_connections", settings.connections_each),
            ("grpc.server_handshake_timeout_ms", int(limits.read_s * 1000)),
            ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
            ("grpc.keepalive_time_ms", keepalive.time),
            ("grpc.keepalive_timeout_ms", keepalive.timeout),
            ("grpc.keepalive_permit_without_calls", int(keepalive.permit_without_calls)),
            ("grpc.http2.max_pings_without_data", keepalive.http2_max_pings_without_data),
            ("grpc.http2.min_ping_interval_without_data_ms", keepalive.http2_min_recv_ping_interval_without_data),
            ("grpc.http2.max_ping_strikes", keepalive.http2_max_ping_strikes),
        ],
    )

    def largest() -> BodyBound:
        """A call names its model in its message: the bound is that of the largest model."""
        gateways = [plane.repository.get(name) for name in plane.repository.names()]
        texts = [(g.manifest.tokenizer, g.options.max_batch) for g in gateways if g.manifest.tokenizer is not None]
        return as_protobuf([(g.manifest.inputs, g.options.max_batch) for g in gateways], limits.body_bytes, texts)

    requests = requests_of(service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"])
    infer = requests["ModelInfer"]
    turns = Turns()
    servicer = InferenceServicer(plane, turns)
    bounded = BoundedServer(server, requests, bounds={infer: largest})
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, bounded)
    service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    health = HealthServicer(plane.repository, SERVICE)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((SERVICE, service, reflection.SERVICE_NAME), server)
    return InferenceServer(server, servicer, health, turns, bounded_parser(infer, largest))


def parse_listened(plane: DataPlane, address: str) -> tuple[Address | UnixAddress, str]:
    """The address to listen on, and as gRPC libraries write it.

    Raises:
        InputError: it is malformed, or the service manager passes a socket of it, which gRPC cannot take.
    """
    try:
        where = parse_address(address)
    except ValueError as error:
        raise InputError(f"gRPC: {error}") from None
    # gRPC binds [::] for IPv4 too, and for IPv4 alone where there is no IPv6.
    text = f"[::]{where}" if str(where).startswith(":") else str(where)
    if text in plane.inherited.left:
        raise InputError(f"systemd passes a socket of {text}, which gRPC cannot take, expected sockets for HTTP only")
    return where, text


def in_use(where: Address | UnixAddress) -> InputError:
    """The error for an address that cannot be listened on."""
    return InputError(f"cannot listen on {where}: in use, or no address of this machine")


@contextlib.asynccontextmanager
async def listen(plane: DataPlane, settings: Settings, address: str) -> AsyncIterator[Listener]:
    """Serve gRPC while the block runs; see `serving.transports.Listen`.

    Raises:
        InputError: `address` is malformed, in use, or not of this machine.
    """
    where, text = parse_listened(plane, address)
    made = make_server(plane, settings)
    server = made.server
    tls = None if isinstance(where, UnixAddress) else plane.tls
    with contextlib.ExitStack() as stack:
        if isinstance(where, UnixAddress):
            stack.enter_context(socket_file(where.path))
        try:
            port = (
                server.add_insecure_port(text) if tls is None else server.add_secure_port(text, server_credentials(tls))
            )
        except RuntimeError:
            raise in_use(where) from None
        await server.start()
        running = asyncio.create_task(server.wait_for_termination())
        try:
            yield Listener(url_of(where, port, encrypted=tls is not None), running)
        finally:
            await made.stop(settings.drain_s)
            await running
            made.turns.close()


def url_of(where: Address | UnixAddress, port: int, *, encrypted: bool) -> str:
    """The URL of a listener, as it is printed."""
    if isinstance(where, UnixAddress):
        return f"grpc+unix://{where.path.absolute()}"
    return f"grpc{'s' if encrypted else ''}://{Address(host=where.host or '::', port=port)}"
