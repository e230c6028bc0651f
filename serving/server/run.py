"""The server process: listen, load and check the models, say that it is ready, answer until told to stop, drain."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

import uvloop

from sensai_serve.errors import ServingError
from sensai_serve.plugins import find
from serving.dataplane import DataPlane
from serving.engine.repository import Repository
from serving.settings import Settings
from serving.telemetry.logs import configure
from serving.transports import Listen

OnReady = Callable[[Mapping[str, str]], None]
"""Told the URL of each transport, by its name."""


def run(repository: Repository, settings: Settings, on_ready: OnReady) -> None:
    """Serve until SIGTERM or SIGINT, then let what is in flight finish and return.

    Args:
        repository: the models; started and stopped here.
        settings: of the server.
        on_ready: called once, when every model has passed its golden check.

    Raises:
        InputError: cannot listen there, or a bundle that cannot be served.
    """

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(plane, settings, stop, on_ready)

    plane = DataPlane(repository, settings)
    configure(settings.log_format, plane.logs)
    _allow_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def serve(plane: DataPlane, settings: Settings, stop: asyncio.Event, on_ready: OnReady) -> None:
    """Serve until `stop` is set. See `run`.

    The transports answer from the first moment: live at once, ready when the models are.
    """
    repository = plane.repository
    async with AsyncExitStack() as transports:
        listening = {}
        for name in ("http",) if settings.grpc is None else ("http", "grpc"):
            listen: Listen = find("serving.transports", name, "listen")
            listening[name] = await transports.enter_async_context(listen(plane, settings))
        broken = [transport.running for transport in listening.values()]
        stopping = asyncio.create_task(stop.wait())
        loading = asyncio.create_task(repository.start())
        try:
            await asyncio.wait((loading, stopping, *broken), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading
                gc.collect()
                gc.freeze()  # a full collection walks what requests made, not the whole program
                on_ready({name: transport.url for name, transport in listening.items()})
                await asyncio.wait((stopping, *broken), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise ServingError("a transport ended by itself")
        finally:
            for task in (stopping, loading):
                task.cancel()
            await asyncio.gather(stopping, loading, return_exceptions=True)
    # The transports have drained, so nothing is in flight any more but what ran out of time.
    await repository.stop(drain_s=0)


def _allow_connections() -> None:
    """As many open files as this process may have; the usual soft limit is less than the connections it takes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
