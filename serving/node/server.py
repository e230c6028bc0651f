"""The process of `sensai node`: load the workers, listen, answer until told to stop; SIGHUP reloads the bundle."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sensai_serve.errors import InputError
from serving.address import Address
from serving.node.node import Node
from serving.node.servicer import Servicer
from serving.runtime import event_loop
from serving.runtime.endpoint import Security, read
from serving.runtime.signals import handle_signals
from serving.runtime.systemd import ServiceManager
from serving.transports.grpc.bounds import BoundedServer, requests_of

LEAST_MESSAGE_BYTES = 4 * 1024 * 1024
"""Bytes that a message may always have: gRPC's own default. A bundle with larger inputs raises it."""
METADATA_BYTES = 32 * 1024
"""Bytes of a call's metadata."""
DRAIN_S = 5.0
"""Seconds that open requests have to be answered when the node stops."""
_log = logging.getLogger(__name__)
_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def run(make_node: Callable[[], Node], address: Address, security: Security, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; systemd, where it started the node, is told of start, reload and end.

    Args:
        make_node: makes the node, on the event loop.
        address: where to listen.
        security: the node's certificate and key, the authority of its clients, and the token that they must send.
        on_ready: called with the URL once every worker is warm.

    Raises:
        InputError: the address is not available, or the bundle cannot be served.
    """

    async def main() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        node = make_node()

        async def reload() -> None:
            await ready.wait()
            with manager.reloading():
                await node.reload()

        handle_signals(stop, reload)
        stopping = asyncio.create_task(stop.wait())
        async with manager.watching(stop), contextlib.AsyncExitStack() as stack:
            loading = asyncio.create_task(stack.enter_async_context(serving(node, address, security)))
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
                return
            url = await loading
            ready.set()
            on_ready(url)
            manager.ready(f"{node.name} on {url}")
            await stopping

    manager = ServiceManager.from_environment()
    event_loop.run(main())


@contextlib.asynccontextmanager
async def serving(node: Node, address: Address, security: Security) -> AsyncIterator[str]:
    """Load and serve a node while the block runs; yields its URL.

    It listens only when it is ready, so that every gateway that connects finds all workers.

    Raises:
        InputError: the address is not available, or a certificate or the token cannot be read.
        SensaiError: a worker cannot start.
    """
    token = security.token()
    credentials = _credentials(security)
    await node.start()
    try:
        servicer = Servicer(node)
        server = grpc.aio.server(
            interceptors=[] if token is None else [_Token(token)],
            options=[
                ("grpc.so_reuseport", 0),  # a port in use must be an error, and not shared
                ("grpc.max_receive_message_length", max(LEAST_MESSAGE_BYTES, 2 * node.largest_input_bytes)),
                ("grpc.max_metadata_size", METADATA_BYTES),
                ("grpc.max_send_message_length", -1),
                # Gateways ping to notice a cut network early.
                ("grpc.http2.min_ping_interval_without_data_ms", 500),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        bounded = BoundedServer(server, requests_of(_SERVICE), refuses=True)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, bounded)
        healthy = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        for service in ("", _SERVICE.full_name):
            await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
        if token is not None and credentials is None and not address.is_loopback:
            _log.warning("the token is sent in the clear, expected TLS beside it: --cert and --key")
        try:
            if credentials is None:
                port = server.add_insecure_port(str(address))
            else:
                port = server.add_secure_port(str(address), credentials)
        except RuntimeError:
            raise InputError(f"cannot listen on {address}: in use, or no address of this machine") from None
        await server.start()
        try:
            scheme = "grpc" if credentials is None else "grpcs"
            yield f"{scheme}://{Address(host=address.host, port=port)}"
        finally:
            await healthy.enter_graceful_shutdown()
            await servicer.leave(DRAIN_S)
            await server.stop(0)
    finally:
        await node.stop()


def _credentials(security: Security) -> Any:
    if security.cert is None or security.key is None:
        if security.ca is not None:
            raise InputError("clients' certificates can only be checked over TLS, expected a certificate and a key too")
        return None
    authorities = None if security.ca is None else read(security.ca)
    return grpc.ssl_server_credentials(
        [(read(security.key), read(security.cert))], authorities, require_client_auth=authorities is not None
    )


class _Token(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without the token, except those of the health service."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        shown = given if isinstance(given, bytes) else given.encode()
        handler = await continuation(details)
        if handler is None or details.method.startswith(f"/{_HEALTH}/") or hmac.compare_digest(shown, self._expected):
            return handler
        return grpc.stream_stream_rpc_method_handler(_refuse)  # of any kind of call: this kind reads nothing by itself


async def _refuse(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
    """Refuse a call before any of its messages is read."""
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
    yield  # never reached; makes this a generator
