"""Starts and stops the transports that the settings name."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from sensai_serve.errors import InputError
from sensai_serve.plugins import find
from serving.dataplane import DataPlane
from serving.settings import Settings
from serving.transports import Listen, Listener


@contextlib.asynccontextmanager
async def listening(plane: DataPlane, settings: Settings) -> AsyncIterator[list[Listener]]:
    """Run every configured transport while the block runs; afterwards all of them drain at the same time.

    Yields:
        The listeners, in the order of `Settings.listeners`.

    Raises:
        PluginError: a transport of that name does not exist.
        InputError: a transport cannot listen on its address, or none listens on a socket that systemd passes.
    """
    stop, running = asyncio.Event(), list[asyncio.Task[None]]()
    try:
        listeners = []
        for name, address in settings.listeners():
            listen: Listen = find("serving.transports", name, "listen")
            began: asyncio.Future[Listener] = asyncio.get_running_loop().create_future()
            running.append(task := asyncio.create_task(_run(listen(plane, settings, address), began, stop)))
            await asyncio.wait((task, began), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            listeners.append(began.result())
        if left := plane.inherited.left:
            raise InputError(
                f"systemd passes a socket of {left[0]}, on which nothing listens over HTTP, expected that address "
                "for --http, --admin or --listen"
            )
        yield listeners
    finally:
        stop.set()
        if running:
            await asyncio.wait(running)
    for task in running:
        task.result()


async def _run(
    transport: AbstractAsyncContextManager[Listener], began: asyncio.Future[Listener], stop: asyncio.Event
) -> None:
    async with transport as listener:
        began.set_result(listener)
        await stop.wait()
