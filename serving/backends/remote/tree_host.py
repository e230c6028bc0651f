"""One node of a broadcast tree: whether inputs reach it through the node above it or directly."""

from __future__ import annotations

import logging

from serving.backends.remote.server import RemoteServer

log = logging.getLogger(__name__)

SMOOTHING = 0.2
"""Weight of the newest sample in what a node usually takes."""
TWICE = 2
"""A node is detached when it was late so many times in a row, and attached after as many trials in time."""
TRY_S = 0.5
"""Seconds between two trials of a node that is detached."""


class TreeHost:
    """One node of the tree, as the gateway sees it."""

    def __init__(self, server: RemoteServer) -> None:
        """Attached to nothing yet."""
        self.server = server
        self.parent: TreeHost | None = None
        self.attached = True
        self.late = 0
        """Requests in a row in which its scores were late."""
        self.trials = 0
        """Trials in a row that were in time, while it is detached."""
        self.try_at = 0.0
        """When it is tried next, on the event loop's clock."""
        self.usual_s: dict[int, float] = {}
        """Seconds until its scores are there, for inputs of so many bits in their length."""

    @property
    def way(self) -> TreeHost:
        """The node that the gateway sends its inputs to now: itself, or one above it."""
        host = self
        while host.parent is not None and host.attached and host.server.takes_pieces and host.parent.server.relays:
            host = host.parent
        return host

    def took(self, bits: int, seconds: float) -> None:
        """Learn how long its scores took for an input of so many bits in its length."""
        usual = self.usual_s.get(bits, seconds)
        self.usual_s[bits] = usual + SMOOTHING * (seconds - usual)

    def was_late(self, now: float, *, times: int = 1) -> None:
        """Count scores that were late, and detach the node if they were so too often."""
        self.late += times
        if self.attached and self.late >= TWICE:
            self.attached, self.trials, self.try_at = False, 0, now + TRY_S
            log.warning("%s: not reached in time through %s: sent to directly", self.server.name, self._above)

    def was_in_time(self) -> None:
        """Count scores that came in time; enough of them attach the node again."""
        self.late = 0
        if not self.attached:
            self.trials += 1
            if self.trials >= TWICE:
                self.attached = True
                log.warning("%s: reached in time through %s again", self.server.name, self._above)

    @property
    def _above(self) -> str:
        assert self.parent is not None
        return self.parent.server.name
