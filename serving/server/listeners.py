"""Starts and stops the transports that the settings name."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from sensai_serve.plugins import find
from serving.dataplane import DataPlane
from serving.settings import Settings
from serving.transports import Listen, Listener


@contextlib.asynccontextmanager
async def listening(plane: DataPlane, settings: Settings) -> AsyncIterator[list[Listener]]:
    """Run every configured transport while the block runs.

    Yields:
        The listeners, in the order of `Settings.listeners`.

    Raises:
        PluginError: a transport of that name does not exist.
        InputError: a transport cannot listen on its address.
    """
    async with contextlib.AsyncExitStack() as transports:
        listeners = []
        for name, address in settings.listeners():
            listen: Listen = find("serving.transports", name, "listen")
            listeners.append(await transports.enter_async_context(listen(plane, settings, address)))
        yield listeners
