"""What a model's latest requests were like, kept only while somebody watches."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.engine.gateway import Gateway
from serving.engine.reply import Reply

MOST = 256
"""Latencies that are kept between two looks; of more requests only the first are."""


@dataclass
class RecentRequests:
    """The requests of one model since the last look. All calls on the event loop's thread."""

    seconds: list[float] = field(default_factory=list)
    """From the beginning of each request to its encoded answer, `MOST` at most."""
    answered: int = 0
    """Number of answered requests."""
    last: tuple[Gateway, Reply, float] | None = None
    """The newest reply, the model that gave it, and its seconds."""

    def add(self, gateway: Gateway, reply: Reply, seconds: float) -> None:
        """Take an answered request into account."""
        self.answered += 1
        if len(self.seconds) < MOST:
            self.seconds.append(seconds)
        self.last = gateway, reply, seconds

    def take(self) -> RecentRequests:
        """Return what has come since the last call, and begin anew."""
        taken = RecentRequests(self.seconds, self.answered, self.last)
        self.seconds, self.answered, self.last = [], 0, None
        return taken
