"""Who may go to the workers: bounded, in the order of arrival.

A worker has `HOLDS` open tasks at most, so that many requests are with the workers at a time. The others wait here,
first come, first served; past the bound they are refused at once.
"""

from __future__ import annotations

import asyncio
from collections import deque

from serving.backends import HOLDS


class Admission:
    """The line in front of one model's workers. All calls from the event loop's thread."""

    def __init__(self, max_in_flight: int) -> None:
        """An empty line.

        Args:
            max_in_flight: requests that may be at the workers or in line.
        """
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self._at_workers = 0
        self._line: deque[asyncio.Future[bool]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def enter(self) -> bool:
        """Take one request in; False where there is no room. `leave` must follow."""
        if self.in_flight >= self.max_in_flight:
            return False
        self.in_flight += 1
        self._idle.clear()
        return True

    def leave(self) -> None:
        """A request that was taken in is over."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def drained(self) -> None:
        """Until no request is left."""
        await self._idle.wait()

    def turn_now(self) -> bool:
        """Take a place at the workers if one is free; then `release` must follow."""
        if self._at_workers >= HOLDS:
            return False
        self._at_workers += 1
        return True

    async def turn(self, expires: float | None) -> bool:
        """Wait for a place at the workers; `release` must follow.

        Args:
            expires: the loop's time after which nobody wants it any more.

        Returns:
            False where that time came first; then there is nothing to release.
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
                self.release()  # the place was handed over in the moment in which nobody wanted it any more
            elif turn in self._line:
                self._line.remove(turn)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self) -> None:
        """Hand the place to the next in line, so that nobody who comes later can take it."""
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
