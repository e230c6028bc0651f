"""How requests come in. A transport is a package here with ``listen``; it translates, the answers are the gateway's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.dataplane import DataPlane
    from serving.settings import Settings


@dataclass(frozen=True)
class Listening:
    """A transport that takes requests."""

    url: str
    running: asyncio.Task[None]
    """Ends only when the transport breaks down."""


Listen = Callable[["DataPlane", "Settings"], AbstractAsyncContextManager[Listening]]
"""What a transport is: entered, it takes requests; left, it takes no more and lets those in flight end."""
