"""When gRPC clients ping their server to learn that the connection is gone.

See https://github.com/grpc/grpc/blob/master/doc/keepalive.md.
"""

from __future__ import annotations

from dataclasses import dataclass

NEVER_MS = 2**31 - 1


@dataclass(frozen=True)
class Keepalive:
    """The keepalive of a client, by default as gRPC and Triton's client have it: no pings."""

    time_ms: int = NEVER_MS
    """Milliseconds without a message after which a ping is sent."""
    timeout_ms: int = 20_000
    """Milliseconds after which a ping without an answer ends the connection."""
    permit_without_calls: bool = False
    """Whether pings are sent while no call is open."""
    max_pings_without_data: int = 2
    """Number of pings in a row without a message between them; 0 for no limit."""

    def arguments(self) -> list[tuple[str, int]]:
        """Channel arguments for gRPC."""
        return [
            ("grpc.keepalive_time_ms", self.time_ms),
            ("grpc.keepalive_timeout_ms", self.timeout_ms),
            ("grpc.keepalive_permit_without_calls", int(self.permit_without_calls)),
            ("grpc.http2.max_pings_without_data", self.max_pings_without_data),
        ]


NO_PINGS = Keepalive()
