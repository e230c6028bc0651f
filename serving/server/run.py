"""Runs the server from its start until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import sys
from collections.abc import Callable, Sequence

from sensai_serve.errors import ServingError
from serving.dataplane import DataPlane
from serving.engine.repository import Repository
from serving.runtime import event_loop
from serving.runtime.signals import handle_signals
from serving.runtime.systemd import InheritedSockets, ServiceManager
from serving.security.reloading import reload_changed
from serving.server.listeners import listening
from serving.settings import Settings
from serving.telemetry.logs import configure

OWN_FILES = 160
"""Files that the process may need beside its clients' connections: models, pipes, regions, and spare connections."""
_log = logging.getLogger(__name__)

OnReady = Callable[[Sequence[str]], None]
"""Called with the URL of every listener."""


def run(repository: Repository, settings: Settings, on_ready: OnReady) -> None:
    """Serve until SIGTERM, SIGINT or SIGQUIT, then let requests in flight finish and return.

    SIGHUP loads the bundles anew, once the server is ready; see `serving.runtime.signals` for other signals. systemd,
    where it started the server, is told of all this, and its sockets are listened on.

    Args:
        repository: the models; this function starts and stops them.
        settings: the server's settings.
        on_ready: called once, when every model has passed its golden check.

    Raises:
        InputError: a transport cannot listen on its address, or a bundle cannot be served.
    """

    async def main() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()

        async def reload() -> None:
            await ready.wait()
            with manager.reloading():
                await repository.reload()

        def now_ready(urls: Sequence[str]) -> None:
            ready.set()
            _warn_of_strangers(plane, settings)
            on_ready(urls)
            manager.ready(f"{', '.join(repository.names()) or 'nothing loaded'} on {' '.join(urls)}")

        handle_signals(stop, reload)
        async with manager.watching(stop):
            await serve(plane, settings, stop, now_ready)

    manager, inherited = ServiceManager.from_environment(), InheritedSockets.from_environment()

    files = _raise_open_file_limit()
    settings, asked = _within(settings, files), settings.limits.connections
    plane = DataPlane(repository, settings, inherited)
    configure(settings.log_format, plane.logs)
    if settings.limits.connections < asked:
        _log.warning(
            "limits.connections is %d in place of %d: this process may open %d files (ulimit -n), %d are its own",
            settings.limits.connections, asked, files, OWN_FILES,
        )  # fmt: skip
    event_loop.run(main())


async def serve(plane: DataPlane, settings: Settings, stop: asyncio.Event, on_ready: OnReady) -> None:
    """Serve until `stop` is set; see `run` for the arguments and errors.

    The transports answer from the first moment: the server is live at once, and ready when the models are.
    """
    repository = plane.repository
    repository.begin_trial()
    await asyncio.sleep(0)  # it begins before the transports are imported, which takes as long
    async with listening(plane, settings) as listeners:
        gc.freeze()
        gc.enable()  # the modules are imported; see `sensai serve`, which switches it off for that
        broken = [listener.running for listener in listeners]
        stopping = asyncio.create_task(stop.wait())
        loading = asyncio.create_task(repository.start())
        reloading = asyncio.create_task(reload_changed(plane.secrets))
        sending = asyncio.create_task(plane.telemetry.send_metrics(settings.otlp.metrics_s))
        try:
            await asyncio.wait((loading, stopping, *broken), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading
                gc.collect()
                gc.freeze()  # later full collections visit only what requests allocate, not the whole program
                on_ready([listener.url for listener in listeners])
                await asyncio.wait((stopping, *broken), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise ServingError("a transport stopped unexpectedly")
        finally:
            tasks = stopping, loading, reloading, sending
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await repository.end_changes()  # a request that waits for a model to load must not hold up the end
    # The transports have drained: only requests that ran out of time can still be in flight.
    await repository.stop(drain_s=0)
    await plane.telemetry.close()


def _warn_of_strangers(plane: DataPlane, settings: Settings) -> None:
    """Say so where other machines can connect and need nothing to be answered, or show their tokens in the clear."""
    if where := ", ".join(settings.open_addresses):
        if plane.tokens is None and settings.tls.client_ca is None:
            _log.warning(
                "every client that reaches %s may ask, expected --tokens, or --client-ca for mutual TLS", where
            )
        elif plane.tls is None:
            _log.warning("tokens come over %s in the clear, expected TLS: --tls-cert and --tls-key", where)


def _raise_open_file_limit() -> int:
    """Allow as many open files as the hard limit permits, and return that; the usual soft limit is far below it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _within(settings: Settings, files: int) -> Settings:
    """The settings with no more connections than this process can open besides its own files."""
    most = max(1, files - OWN_FILES)
    if settings.limits.connections <= most:
        return settings
    return settings.model_copy(update={"limits": settings.limits.model_copy(update={"connections": most})})
