"""The memory that bodies of requests may take, those of all connections and transports together.

A body is counted as its bytes arrive, so that a client which only announces a large one takes nothing from others.
Where the budget is spent, the largest body that is still arriving is given up (longest queue drop, as in `admission`):
clients that send little get through beside one that sends much.
"""

from __future__ import annotations

from collections.abc import Callable

from sensai_serve.errors import OverloadedError

FULL = "the bodies of all requests together have more bytes than the server holds, expected fewer at a time"
"""What the client of a body that is given up is told."""


class BodyBudget:
    """Counts the bytes of bodies. All calls on the event loop's thread."""

    def __init__(self, most: int) -> None:
        """Start empty.

        Args:
            most: the most bytes at a time.
        """
        self.most = most
        self.used = 0
        self._arriving: set[HeldBody] = set()

    def hold(self, give_up: Callable[[], None] | None = None) -> HeldBody:
        """Begin to count one body.

        Args:
            give_up: called to refuse this body for the sake of smaller ones, while it arrives; None where that is
                not possible.
        """
        return HeldBody(self, give_up)

    def _make_room(self, asking: HeldBody) -> bool:
        """Give up bodies, the largest first, until the rest fits; False where `asking` is the largest itself."""
        while self.used > self.most:
            largest = max(self._arriving, key=lambda body: body.size, default=None)
            if largest is None or largest.size <= asking.size:
                asking.release()
                return False
            give_up = largest.give_up
            largest.release()
            if give_up is not None:
                give_up()
        return True


class HeldBody:
    """What one connection or call holds of the budget."""

    __slots__ = ("_budget", "give_up", "size")

    def __init__(self, budget: BodyBudget, give_up: Callable[[], None] | None) -> None:
        """Hold nothing yet; see `BodyBudget.hold`."""
        self._budget = budget
        self.give_up = give_up
        self.size = 0

    def add(self, size: int) -> bool:
        """Count `size` bytes more; False if there is no room for them, and then nothing is held any more."""
        budget = self._budget
        if not self.size and self.give_up is not None:
            budget._arriving.add(self)
        self.size += size
        budget.used += size
        return budget.used <= budget.most or budget._make_room(self)

    def take(self, size: int) -> None:
        """Count `size` bytes more.

        Raises:
            OverloadedError: there is no room for them; nothing is held any more.
        """
        if not self.add(size):
            raise OverloadedError(FULL)

    def arrived(self) -> None:
        """The body is complete: from now on it is not given up for others."""
        self._budget._arriving.discard(self)

    def release(self) -> None:
        """Give all of it back; may be called again."""
        self._budget._arriving.discard(self)
        self._budget.used -= self.size
        self.size = 0
