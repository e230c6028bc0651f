"""The queue in front of the workers: bounded, first come, first served.

A worker has `HOLDS` open tasks at most, so that many requests are with the workers at a time. The others wait here,
first come, first served; past the bound they are refused at once.
"""

from __future__ import annotations

import asyncio
from collections import deque

from serving.backends import HOLDS


class Admission:
    """The queue in front of one model's workers. All calls on the event loop's thread."""

    def __init__(self, max_in_flight: int) -> None:
        """Start empty.

        Args:
            max_in_flight: the most requests at the workers and in the queue together.
        """
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self._at_workers = 0
        self._line: deque[asyncio.Future[bool]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._line)

    def enter(self) -> bool:
        """Admit one request, which must `leave` when it is over; False if there is no room."""
        if self.in_flight >= self.max_in_flight:
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

    def turn_now(self) -> bool:
        """Take a place at the workers, which must be released; False if none is free."""
        if self._at_workers >= HOLDS:
            return False
        self._at_workers += 1
        return True

    async def turn(self, expires: float | None) -> bool:
        """Wait for a place at the workers, which must be released.

        Args:
            expires: the event loop's time, in seconds, at which to give up; None for never.

        Returns:
            False if that time came first; then there is no place to release.
        """
        if self.turn_now():
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._line.append(turn)
        timer = None if expires is None else loop.call_at(expires, self._give_up, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.release()  # the place was handed over just before the cancellation
            elif turn in self._line:
                self._line.remove(turn)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self) -> None:
        """Hand a place to the first in the queue, so that no later request can take it, or free it."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._at_workers -= 1

    def _give_up(self, turn: asyncio.Future[bool]) -> None:
        if not turn.done():
            self._line.remove(turn)
            turn.set_result(False)
