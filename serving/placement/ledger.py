"""What is taken of devices' memory, which the models of a server share, and the versions of a node's bundle."""

from __future__ import annotations

from collections.abc import Sequence


class Ledger:
    """Bytes of each device, by who takes them. All calls on one thread."""

    def __init__(self, n_devices: int) -> None:
        """Nobody takes anything."""
        self._none = (0,) * n_devices
        self._taken: dict[object, tuple[int, ...]] = {}

    @property
    def taken(self) -> tuple[int, ...]:
        """What all take together of each device."""
        return tuple(map(sum, zip(self._none, *self._taken.values(), strict=True)))

    def take(self, who: object, used: Sequence[int]) -> None:
        """Note what somebody takes of each device, in place of what was noted before."""
        self._taken[who] = tuple(used)

    def release(self, who: object) -> None:
        """Note that somebody takes nothing any more."""
        self._taken.pop(who, None)
