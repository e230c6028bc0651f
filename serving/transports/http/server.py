"""The HTTP listener: uvicorn, started, stopped and drained by this server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import uvicorn

from serving.address import Address, UnixAddress, parse_address
from serving.dataplane import DataPlane
from serving.security.access import Access
from serving.settings import Settings
from serving.transports import Listener
from serving.transports.http.app import create_app
from serving.transports.http.asgi.sites import Sites
from serving.transports.http.bind import bound
from serving.transports.http.connection.fast_path import FastPath
from serving.transports.http.connection.protocol import BoundedProtocol, bounded_protocol
from serving.transports.http.connection.websocket import bounded_websocket

PING_S = 20.0
"""Seconds between two pings of a WebSocket, and until one must be answered, at most."""

SETTLE_S = 0.05
"""Seconds in which requests end by themselves whose connections have just been ended."""
FAREWELL_S = 1.0
"""Seconds that a client has to say, over TLS, that it has seen the end of its connection."""
REFUSE_S = 1.0
"""Seconds that requests have to be refused when the time to finish them is over."""


def listen(plane: DataPlane, settings: Settings, address: str) -> AbstractAsyncContextManager[Listener]:
    """Serve HTTP while the block runs; see `serving.transports.Listen`.

    Raises:
        InputError: `address` is malformed, in use, or not of this machine.
    """
    return listen_with(plane, settings, address, plane.access)


@contextlib.asynccontextmanager
async def listen_with(
    plane: DataPlane,
    settings: Settings,
    address: str,
    access: Access,
    *,
    encrypted: bool = True,
    connections: int | None = None,
) -> AsyncIterator[Listener]:
    """Serve HTTP as `listen` does, for clients that `access` lets in.

    Args:
        plane: as `listen` takes it.
        settings: as `listen` takes it.
        address: as `listen` takes it.
        access: what clients may do.
        encrypted: whether connections use TLS where the settings name a certificate.
        connections: how many may be open; None for this listener's share of those of the settings.
    """
    limits = settings.limits.model_copy(update={"connections": connections or settings.connections_each})
    where = _address(address)
    sites = Sites(where, settings.allowed_hosts, settings.allowed_origins)
    app = create_app(plane, sites, access, settings.root_path, console_for=settings.console_for)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits, app.infer, sites, plane.bodies, access, FastPath(plane, app.infer, access)),
        ws=bounded_websocket(limits, plane.bodies),
        ws_max_size=settings.limits.body_bytes,
        ws_ping_interval=min(PING_S, limits.idle_s),
        ws_ping_timeout=min(PING_S, limits.read_s),  # a frame that is never finished keeps its client from answering
        ws_per_message_deflate=False,  # images are compressed already, and decompression would have no limit
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,  # the data plane writes it, for all transports
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(settings.limits.idle_s),
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )
    tls = None if plane.tls is None or not encrypted or isinstance(where, UnixAddress) else plane.tls.context()
    server = _Uvicorn(config, tls, limits.read_s)
    with bound(address, plane.inherited, encrypted=tls is not None) as (sockets, url):
        running = asyncio.create_task(server.serve(sockets))
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
        try:
            yield Listener(url, running)
        finally:
            listening.cancel()
            app.feeds.close()
            server.should_exit = True
            await running


def _address(text: str) -> Address | UnixAddress | None:
    try:
        return parse_address(text)
    except ValueError:
        return None  # `bound` says what is wrong with it


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers, and with an event for having begun to listen."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None, handshake_s: float) -> None:
        """Make the server.

        Args:
            config: uvicorn's settings.
            tls: encrypts its connections; None for none.
            handshake_s: seconds that a TLS handshake may take.
        """
        super().__init__(config)
        self.listening = asyncio.Event()
        times = {"ssl_handshake_timeout": handshake_s, "ssl_shutdown_timeout": FAREWELL_S}
        self._tls: dict[str, Any] = {} if tls is None else {"ssl": tls, **times}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers: uvicorn would end the process by the signal, not with exit code 0."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let requests finish, then tell those that have not that the server stops.

        Uvicorn's own shutdown would wait for clients that read nothing, and write a traceback for each late request.
        """
        for each in (*self.servers, *(sockets or ())):
            each.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                await self._wait_tasks_to_complete()
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.give_up()
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=SETTLE_S)
        if late := set(self.server_state.tasks):
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=REFUSE_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and set `listening`. Uvicorn's own would let TLS handshakes take a minute."""
        protocol: Any = self.config.http_protocol_class
        create = functools.partial(protocol, config=self.config, server_state=self.server_state, app_state={})
        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        self.servers = [
            await loop.create_server(create, sock=sock, backlog=backlog, **self._tls) for sock in sockets or ()
        ]
        self.started = True
        self.listening.set()
