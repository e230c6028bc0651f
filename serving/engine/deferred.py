"""Books that are kept after the reply: nobody waits for them, and a few at a time cost less than one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakMethod

LATER_S = 0.002
"""How long an entry may wait."""
MOST = 64
"""Entries that may wait."""
_T = TypeVar("_T")


class Books(Generic[_T]):
    """Entries that are noted now and kept a little later. All calls from the event loop's thread.

    Whoever reads what they are kept in calls `keep` before.
    """

    def __init__(self, write: Callable[[list[_T]], None]) -> None:
        """Empty.

        Args:
            write: a method that keeps entries, in their order.
        """
        self._write = WeakMethod(write)  # a cycle would keep a replaced model until the garbage collector comes by
        self._noted: list[_T] = []
        self._due = False

    def note(self, entry: _T) -> None:
        """Keep this entry soon."""
        self._noted.append(entry)
        if len(self._noted) >= MOST:
            self.keep()
        elif not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(LATER_S, self._keep_due)

    def keep(self) -> None:
        """Keep what is noted now."""
        noted, self._noted = self._noted, []
        if noted and (write := self._write()) is not None:
            write(noted)

    def _keep_due(self) -> None:
        self._due = False
        self.keep()
