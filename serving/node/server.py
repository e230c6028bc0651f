"""The process of `sensai node`: load the workers, listen, answer until told to stop; SIGHUP reloads the bundle."""

from __future__ import annotations

import asyncio
import contextlib
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
from serving.node.secrets import GatewayTokens, open_tls
from serving.node.servicer import Servicer
from serving.runtime import event_loop
from serving.runtime.endpoint import Security
from serving.runtime.signals import handle_signals
from serving.runtime.systemd import ServiceManager
from serving.security.reloading import reload_changed
from serving.security.tls import ServerTls
from serving.transports.grpc.bounds import BoundedServer, requests_of
from serving.transports.grpc.credentials import server_credentials

METADATA_BYTES = 32 * 1024
"""Bytes of a call's metadata."""
DRAIN_S = 5.0
"""Seconds that open requests have to be answered when the node stops."""
LAST_S = 0.05
"""Seconds that the last replies have to go out then."""
_log = logging.getLogger(__name__)
_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def run(
    make_node: Callable[[], Node],
    address: Address,
    security: Security,
    on_ready: Callable[[str], None],
    probes: Address | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; systemd, where it started the node, is told of start, reload and end.

    Args:
        make_node: makes the node, on the event loop.
        address: where to listen.
        security: the node's certificate and key, the authority of its clients, and the tokens that they may send.
        on_ready: called with the URL once every worker is warm.
        probes: where the health service alone is offered, without TLS; None for nowhere.

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
            loading = asyncio.create_task(stack.enter_async_context(serving(node, address, security, probes)))
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
async def serving(
    node: Node, address: Address, security: Security, probes: Address | None = None
) -> AsyncIterator[str]:
    """Load and serve a node while the block runs; yields its URL.

    It listens only when it is ready, so that every gateway that connects finds all workers.

    Raises:
        InputError: an address is not available, or a certificate or a token cannot be used.
        SensaiError: a worker cannot start.
    """
    tokens, tls = GatewayTokens(security), open_tls(security)
    await node.start()
    try:
        servicer = Servicer(node)
        server = grpc.aio.server(
            interceptors=[_Tokens(tokens)] if tokens.files else [],
            options=[
                ("grpc.so_reuseport", 0),  # a port in use must be an error, and not shared
                ("grpc.max_receive_message_length", node.largest_message_bytes),
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
        if tokens.files and tls is None and not address.is_loopback:
            _log.warning("the token is sent in the clear, expected TLS beside it: --cert and --key")
        port = _bind(server, address, tls)
        servers = [server]
        if probes is not None:
            servers.append(grpc.aio.server(options=[("grpc.so_reuseport", 0)]))
            health_pb2_grpc.add_HealthServicer_to_server(healthy, servers[-1])
            _bind(servers[-1], probes, None)
        for each in servers:
            await each.start()
        reloading = asyncio.create_task(reload_changed([each for each in (tokens, tls) if each and each.files]))
        try:
            scheme = "grpc" if tls is None else "grpcs"
            yield f"{scheme}://{Address(host=address.host, port=port)}"
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
            await healthy.enter_graceful_shutdown()
            await servicer.leave(DRAIN_S)
            for each in servers:
                await each.stop(LAST_S)
    finally:
        await node.stop()


def _bind(server: grpc.aio.Server, address: Address, tls: ServerTls | None) -> int:
    """Have a server listen; the port."""
    try:
        if tls is None:
            return int(server.add_insecure_port(str(address)))
        return int(server.add_secure_port(str(address), server_credentials(tls)))
    except RuntimeError:
        raise InputError(f"cannot listen on {address}: in use, or no address of this machine") from None


class _Tokens(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a token, except those of the health service."""

    def __init__(self, tokens: GatewayTokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        shown = given if isinstance(given, bytes) else given.encode()
        handler = await continuation(details)
        if handler is None or details.method.startswith(f"/{_HEALTH}/") or self._tokens.let_in(shown):
            return handler
        return grpc.stream_stream_rpc_method_handler(_refuse)  # of any kind of call: this kind reads nothing by itself


async def _refuse(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
    """Refuse a call before any of its messages is read."""
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
    yield  # never reached; makes this a generator
