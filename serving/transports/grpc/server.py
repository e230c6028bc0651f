"""The gRPC listener: grpc.aio on the server's event loop, with health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sensai_serve.errors import InputError
from serving.dataplane import DataPlane
from serving.settings import Address, Settings
from serving.transports import Listening
from serving.transports.grpc.health import Health
from serving.transports.grpc.servicer import Servicer

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


@contextlib.asynccontextmanager
async def listen(plane: DataPlane, settings: Settings) -> AsyncIterator[Listening]:
    """Listen; on leaving, stop listening and let calls in flight end.

    Raises:
        InputError: cannot listen there.
    """
    address = settings.grpc
    assert address is not None
    limits = settings.limits
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not half of the calls
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        ]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(plane), server)
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    health_pb2_grpc.add_HealthServicer_to_server(Health(plane.repository, SERVICE), server)
    reflection.enable_server_reflection((SERVICE, health, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError:
        raise InputError(f"cannot listen on {address}: in use, or no address of this machine") from None
    await server.start()
    running = asyncio.create_task(server.wait_for_termination())
    try:
        yield Listening(f"grpc://{Address(host=address.host, port=port)}", running)
    finally:
        await server.stop(settings.drain_s)
        await running
