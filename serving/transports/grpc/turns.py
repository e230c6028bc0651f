"""Turns at the event loop for connections that hold many calls open, beside others that do not.

gRPC hands calls over one by one, in the order in which they came, whatever connection they came by: one that holds a
hundred open has them all begun before the next connection's first. So where several connections ask, a call begins at
once if its connection has no other here, and waits for a turn otherwise. The line of calls is then here, not in gRPC;
connections take turns at it, and whoever sends one call after the other finds none.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

REMEMBERED_S = 10.0
"""Seconds after which a connection that asks for nothing does not count any more."""
PRUNED_S = 1.0
"""Seconds between two looks for such connections."""
QUIET = 2
"""Trips to another thread in a row without a new call in line, after which gRPC has none to hand over. Its calls come
from another thread too."""
TRIPS = 16
"""Trips after which the next turn is given, new calls or not."""
REST_S = 0.05
"""The longest rest between two turns, in seconds."""


class Turns:
    """Lets requests begin. All calls on the event loop's thread."""

    def __init__(self) -> None:
        """Start with nobody waiting."""
        self._asked: dict[Hashable, float] = {}
        """When each client has asked last."""
        self._pruned = 0.0
        self._lines: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """The waiting requests of each client that has any; the first client has the next turn."""
        self._queued = 0
        self._here: set[Hashable] = set()
        """Clients of whom a request has begun since gRPC had no more calls to hand over."""
        self._giving: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="turns")

    async def take(self, client: Hashable) -> None:
        """Wait until a request may begin.

        Args:
            client: the connection that it came by.
        """
        loop = asyncio.get_running_loop()
        self._asked[client] = now = loop.time()
        if self._pruned + PRUNED_S < now:
            self._pruned = now
            self._asked = {known: last for known, last in self._asked.items() if last + REMEMBERED_S >= now}
        if len(self._asked) == 1 and not self._lines:
            return
        waits = client in self._here or client in self._lines
        self._here.add(client)
        if self._giving is None:
            self._giving = loop.create_task(self._give())
        if waits:
            self._queued += 1
            turn = loop.create_future()
            self._lines.setdefault(client, deque()).append(turn)
            await turn

    def close(self) -> None:
        """Give no more turns."""
        if self._giving is not None:
            self._giving.cancel()
        self._thread.shutdown(wait=False)

    async def _give(self) -> None:
        """Give turns, one after the other, until nobody waits."""
        while True:
            began = time.perf_counter()
            await self._handed_over()
            self._here = set(self._lines)
            if not self._lines:
                break
            if len(self._lines) < len(self._asked):
                # A client with one call at a time finds the event loop free half of the time at least.
                await self._trip(min(time.perf_counter() - began, REST_S))
            self._next()
        self._giving = None

    def _next(self) -> None:
        """Give the turn to the client that has waited longest for one."""
        while self._lines:
            client = next(iter(self._lines))
            line = self._lines.pop(client)
            turn = line.popleft()
            if line:
                self._lines[client] = line  # behind the other clients
            if not turn.done():  # else its call was cancelled
                self._here.add(client)
                turn.set_result(None)
                return

    async def _handed_over(self) -> None:
        """Wait until gRPC has no more calls to hand over that must wait."""
        quiet = trips = 0
        while quiet < QUIET and trips < TRIPS:
            queued = self._queued
            await self._trip(0.0)
            quiet, trips = (quiet + 1 if self._queued == queued else 0), trips + 1

    async def _trip(self, seconds: float) -> None:
        """Go to another thread and back, and rest there: a timer of the event loop is not fine enough."""
        await asyncio.get_running_loop().run_in_executor(self._thread, time.sleep, seconds)
