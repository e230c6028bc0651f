"""Changes to models: one at a time for each model, a bounded number in all, each to its end whoever waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from sensai_serve.errors import NotReadyError, OverloadedError
from sensai_serve.process_memory import trim

MAX_CHANGES = 64
"""Models that clients may have loaded and unloaded at a time, those that wait for their turn included."""
_STOPPING = "the server is stopping"


class Changes:
    """The changes that are being made, and those that wait for their model. All calls on one event loop."""

    def __init__(self) -> None:
        """Nothing is being changed."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()  # changes of each model that wait for its lock or hold it
        self._going: set[asyncio.Task[None]] = set()
        self._ending = False

    def check_room(self) -> None:
        """See whether a client may have something changed.

        Raises:
            NotReadyError: the server is stopping.
            OverloadedError: `MAX_CHANGES` models are being loaded or unloaded.
        """
        if self._ending:
            raise NotReadyError(_STOPPING)
        if len(self._going) >= MAX_CHANGES:  # they go on when their clients leave, so clients could pile them up
            raise OverloadedError(f"{MAX_CHANGES} models are being loaded or unloaded, expected fewer at a time")

    async def make(self, name: str, change: Coroutine[Any, Any, None]) -> None:
        """Make one change to a model at a time, to its end even if the client that asked for it disconnects.

        Args:
            name: the model's.
            change: changes it; raises whatever it raises here.

        Raises:
            NotReadyError: the server is stopping.
        """

        if self._ending:
            change.close()
            raise NotReadyError(_STOPPING)

        async def alone() -> None:
            lock = self._locks.setdefault(name, asyncio.Lock())
            self._waiting[name] += 1
            try:
                async with lock:
                    try:
                        await change
                    finally:
                        await asyncio.to_thread(trim)
            finally:
                change.close()  # it has not begun where it was given up in line
                self._waiting[name] -= 1
                if not self._waiting[name]:
                    del self._waiting[name], self._locks[name]

        # Tasks that the model starts must not name the request that loaded it in their logs for ever.
        task = asyncio.create_task(alone(), context=Context())
        self._going.add(task)
        task.add_done_callback(self._made)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            waits = asyncio.current_task()
            if task.cancelled() and not (waits and waits.cancelling()):  # else whoever waits is to end too
                raise NotReadyError(_STOPPING) from None
            raise

    async def end(self, *others: asyncio.Task[None]) -> None:
        """Give up what is being changed, and `others` too; nothing begins any more."""
        self._ending = True
        going = [*self._going, *others]
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)

    def _made(self, task: asyncio.Task[None]) -> None:
        self._going.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: who still waits for the change gets the error
