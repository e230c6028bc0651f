"""The queue in front of the workers: bounded, and fair between clients.

A worker has `HOLDS` open tasks at most, so that many requests are with the workers at a time. The others wait here. A
client's requests wait in the order in which they came, and clients take turns, so that one with many open requests does
not keep out one with a single request. Where the queue is full, the client with the most waiting requests loses its
last one to a client with fewer (longest queue drop); other requests are refused at once.

Source: Suter et al., "Design considerations for supporting TCP with per-flow queueing", 1998 (longest queue drop).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from contextvars import ContextVar
from urllib.parse import unquote

from sensai_serve.errors import OverloadedError
from serving.backends import HOLDS

CLIENT: ContextVar[Hashable] = ContextVar("client", default=None)
"""Who sends the request that is being answered: transports set it to what tells connections apart, its address where it
has one."""


def client_address() -> str:
    """Address of the client whose request is being answered, ``local`` over a Unix domain socket."""
    client = CLIENT.get()
    if not isinstance(client, str) or client.startswith("unix:"):
        return "local"
    return unquote(client.removeprefix("ipv4:").removeprefix("ipv6:"))  # as gRPC writes addresses


class Admission:
    """The queue in front of one model's workers. All calls on the event loop's thread."""

    def __init__(self, max_in_flight: int, places: int = HOLDS) -> None:
        """Start empty.

        Args:
            max_in_flight: the most requests at the workers and in the queue together.
            places: the most requests at the workers.
        """
        self._places = places
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self._at_workers = 0
        self._lines: dict[Hashable, deque[asyncio.Future[bool]]] = {}
        """The waiting requests of each client that has any; the first client has the next turn."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return sum(map(len, self._lines.values()))

    def enter(self) -> bool:
        """Admit one request, which must `leave` when it is over; False if there is no room."""
        if self.in_flight >= self.max_in_flight and not self._make_room():
            return False
        self.in_flight += 1
        self._idle.clear()
        return True

    def leave(self) -> None:
        """End one admitted request."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def drained(self) -> None:
        """Wait until no admitted request is left."""
        await self._idle.wait()

    @property
    def has_turn_now(self) -> bool:
        """Whether a request would be admitted and have its place at the workers without waiting."""
        return self.in_flight < self.max_in_flight and self._at_workers < self._places

    def turn_now(self) -> bool:
        """Take a place at the workers, which must be released; False if none is free."""
        if self._at_workers >= self._places:
            return False
        self._at_workers += 1
        return True

    async def turn(self, expires: float | None) -> bool:
        """Wait for a place at the workers, which must be released.

        Args:
            expires: the event loop's time, in seconds, at which to give up; None for never.

        Returns:
            False if that time came first; then there is no place to release.

        Raises:
            OverloadedError: the request had to make room for one of a client with fewer requests.
        """
        if self.turn_now():
            return True
        loop, client = asyncio.get_running_loop(), CLIENT.get()
        turn: asyncio.Future[bool] = loop.create_future()
        self._lines.setdefault(client, deque()).append(turn)
        timer = None if expires is None else loop.call_at(expires, self._give_up, client, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception() and turn.result():
                self.release()  # the place was handed over just before the cancellation
            else:
                self._remove(client, turn)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self) -> None:
        """Hand a place to the next client's first request, so that no later request can take it, or free it."""
        while self._lines:
            client = next(iter(self._lines))
            line = self._lines.pop(client)
            turn = line.popleft()
            if line:
                self._lines[client] = line  # behind the other clients
            if not turn.done():
                turn.set_result(True)
                return
        self._at_workers -= 1

    def _make_room(self) -> bool:
        """Drop the last waiting request of the client that has the most, if it has more than the present one."""
        most = max(self._lines.values(), key=len, default=None)
        if most is None or len(most) <= len(self._lines.get(CLIENT.get(), ())) + 1:
            return False
        dropped = most.pop()
        if not dropped.done():
            dropped.set_exception(
                OverloadedError("the queue is full, and the request made room for one of a client with fewer requests")
            )
        return True

    def _give_up(self, client: Hashable, turn: asyncio.Future[bool]) -> None:
        if not turn.done():
            self._remove(client, turn)
            turn.set_result(False)

    def _remove(self, client: Hashable, turn: asyncio.Future[bool]) -> None:
        line = self._lines.get(client)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[client]
