"""The listener of pygrpc-native: a grpcio server on a socket of its own answers what it does not."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from pygrpc_native import NativeGrpcFront

from sensai_serve.errors import InputError
from serving.address import UnixAddress
from serving.dataplane import DataPlane
from serving.settings import Settings
from serving.transports import Listener
from serving.transports._unix_socket import socket_file
from serving.transports.grpc.server import SERVICE, in_use, make_server, parse_listened, url_of
from serving.transports.grpc_native.calls import NativeCalls
from serving.transports.grpc_native.fast_path import GrpcFastPath

METHOD = f"/{SERVICE}/ModelInfer"
"""The one method that is not left to grpcio."""
IO_THREADS = 1
"""Threads that speak HTTP/2: of small messages, two answer no sooner than one, and a core is more for the workers."""


@contextlib.asynccontextmanager
async def listen(plane: DataPlane, settings: Settings, address: str) -> AsyncIterator[Listener]:
    """Serve gRPC while the block runs; see `serving.transports.Listen`.

    Raises:
        InputError: `address` is malformed, in use, or not of this machine; or the server has a certificate.
    """
    where, text = parse_listened(plane, address)
    if plane.tls is not None and not isinstance(where, UnixAddress):
        raise InputError("grpc-native has no TLS, expected the transport grpc, or no certificate")
    made = make_server(plane, settings)
    limits, keepalive = settings.limits, settings.grpc_keepalive
    with contextlib.ExitStack() as stack:
        if isinstance(where, UnixAddress):
            stack.enter_context(socket_file(where.path))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sensai-grpc-")))
        try:
            front = NativeGrpcFront(
                text,
                [(METHOD, False)],
                io_threads=IO_THREADS,
                call_details=True,
                keepalive_time_ms=keepalive.time,
                keepalive_timeout_ms=keepalive.timeout,
                keepalive_permit_without_calls=keepalive.permit_without_calls,
                max_metadata_size=limits.header_bytes,
            )
        except OSError:
            raise in_use(where) from None
        behind = folder / "grpcio"
        made.server.add_insecure_port(f"unix:{behind}")
        await made.server.start()
        front.set_fallback(str(behind))
        fast_path = GrpcFastPath(plane)
        calls = NativeCalls(front, made.servicer, made.parse_infer, fast_path, plane.access, limits.body_bytes)
        calls.start()
        running = asyncio.create_task(made.server.wait_for_termination())
        try:
            yield Listener(url_of(where, front.bound_port, encrypted=False), running)
        finally:
            await asyncio.gather(calls.stop(settings.drain_s), made.stop(settings.drain_s))
            await calls.close()
            await running
            made.turns.close()
