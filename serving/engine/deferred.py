"""Bookkeeping that is put off until after the reply: nobody waits for it, and a few entries at a time cost less."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Generic, TypeVar
from weakref import WeakMethod

DELAY_S = 0.002
"""The longest that an entry waits to be written, in seconds."""
BATCH = 64
"""Entries that are written at once when so many wait."""
_T = TypeVar("_T")


class DeferredWrites(Generic[_T]):
    """Entries that are written a little later, several at a time. All calls on the event loop's thread.

    Whatever reads what the entries are written to calls `flush` first.
    """

    def __init__(self, write: Callable[[list[_T]], None]) -> None:
        """Start without entries.

        Args:
            write: a bound method that writes entries, in their order.
        """
        self._write = WeakMethod(write)  # a cycle would keep a replaced model until the garbage collector runs
        self._waiting: list[_T] = []
        self._scheduled = False

    def add(self, entry: _T) -> None:
        """Write this entry within `DELAY_S`."""
        self._waiting.append(entry)
        if len(self._waiting) >= BATCH:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(DELAY_S, self._flush_scheduled)

    def flush(self) -> None:
        """Write what is waiting now."""
        entries, self._waiting = self._waiting, []
        if entries and (write := self._write()) is not None:
            Context().run(write, entries)  # the request that happens to be answered now must not be named in its logs

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()
