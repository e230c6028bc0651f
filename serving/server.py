"""The server process: listen, load and check the models, say that it is ready, answer until told to stop, drain."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
import uvloop

from sensai_serve.errors import InputError, ServingError
from serving.dataplane import DataPlane
from serving.repository import Repository
from serving.settings import Address, Settings
from serving.transports.http import Application, create_app

BACKLOG = 2048
OnReady = Callable[[str], None]


def run(repository: Repository, settings: Settings, on_ready: OnReady) -> None:
    """Serve until SIGTERM or SIGINT, then let what is in flight finish and return.

    Args:
        repository: the models; started and stopped here.
        settings: of the server.
        on_ready: called once with the URL, when every model has passed its golden check.

    Raises:
        InputError: cannot listen there, or a bundle that cannot be served.
    """

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(repository, settings, stop, on_ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def serve(repository: Repository, settings: Settings, stop: asyncio.Event, on_ready: OnReady) -> None:
    """Serve until `stop` is set. See `run`.

    HTTP answers from the first moment: live at once, ready when the models are.
    """
    async with _http(create_app(DataPlane(repository, settings)), settings) as (url, server):
        stopping = asyncio.create_task(stop.wait())
        loading = asyncio.create_task(repository.start())
        try:
            await asyncio.wait((loading, stopping, server), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return
            await loading
            on_ready(url)
            await asyncio.wait((stopping, server), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise ServingError("the HTTP server ended by itself")
        finally:
            for task in (stopping, loading):
                task.cancel()
            await asyncio.gather(stopping, loading, return_exceptions=True)
    # The transport has drained, so nothing is in flight any more but what ran out of time.
    await repository.stop(drain_s=0)


class _Uvicorn(uvicorn.Server):
    """Uvicorn, told to stop by us alone, and telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone; uvicorn would end the process by the signal it got, not with exit code 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.listening.set()


@contextlib.asynccontextmanager
async def _http(app: Application, settings: Settings) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """Listen, and on leaving stop listening and drain. Gives the URL and the running server."""
    listener = _listen(settings.http)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=settings.access_log,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(settings.limits.idle_s),
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve([listener]))
    listening = asyncio.create_task(server.listening.wait())
    await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield f"http://{Address(host=host, port=port)}", task
    finally:
        listening.cancel()
        server.should_exit = True
        await task


def _listen(address: Address) -> socket.socket:
    try:
        info = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(info[0][4][:2], family=info[0][0], backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise InputError(f"cannot listen on {address}: {reason}") from None
