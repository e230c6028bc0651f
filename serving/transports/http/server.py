"""The HTTP listener: uvicorn, started, stopped and drained by this server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from serving.dataplane import DataPlane
from serving.settings import Settings
from serving.transports import Listener
from serving.transports.http.app import create_app
from serving.transports.http.bind import bound
from serving.transports.http.protocol import bounded_protocol


@contextlib.asynccontextmanager
async def listen(plane: DataPlane, settings: Settings, address: str) -> AsyncIterator[Listener]:
    """Serve HTTP while the block runs; see `serving.transports.Listen`.

    Raises:
        InputError: `address` is malformed, in use, or not of this machine.
    """
    app = create_app(plane)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(settings.limits, app.infer, plane.bodies),
        ws="websockets-sansio",
        ws_max_size=settings.limits.body_bytes,
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
    server = _Uvicorn(config)
    with bound(address) as (sockets, url):
        running = asyncio.create_task(server.serve(sockets))
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
        try:
            yield Listener(url, running)
        finally:
            listening.cancel()
            server.should_exit = True
            await running


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers, and with an event for having begun to listen."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers: uvicorn would end the process by the signal, not with exit code 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and set `listening`."""
        await super().startup(sockets)
        self.listening.set()
