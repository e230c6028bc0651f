"""Transports: how requests come in. A transport only translates; the data plane answers.

A transport is a package or module here, an entry point of the group ``sensai_serve.serving.transports``, or
``package.module:callable``. Its `listen` (see `Listen`) takes the data plane, the settings and the address that the
command line gave: ``sensai serve BUNDLE --listen NAME=ADDRESS``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from serving.dataplane import DataPlane
from serving.settings import Settings


@dataclass(frozen=True)
class Listener:
    """A transport that accepts requests."""

    url: str
    """URL that clients connect to; printed when the server is ready."""
    running: asyncio.Task[None]
    """Ends when the transport has stopped; the server stops too if that happens before it was told to."""


Listen = Callable[[DataPlane, Settings, str], AbstractAsyncContextManager[Listener]]
"""Type of a transport: an asynchronous context manager that listens while its block runs.

Its arguments are the data plane, the settings, and the address as the user wrote it. On entering it raises InputError
where it cannot listen there. On leaving it accepts no more requests and gives those in flight
`settings.drain_s` seconds to finish.
"""
