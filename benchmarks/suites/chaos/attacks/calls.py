"""One gRPC connection that holds 32 calls open: where one is answered or refused, it makes another."""

from __future__ import annotations

from benchmarks.subjects.transports import GRPC_INFER
from benchmarks.suites.chaos.attacks import Tally
from benchmarks.suites.chaos.attacks.flooding import flood
from benchmarks.suites.chaos.http2 import CallFlood
from benchmarks.suites.chaos.target import Target

CALLS = 32


def connection(to: Target) -> CallFlood:
    """The connection, before it is made."""
    return CallFlood(GRPC_INFER, to.calls[0], CALLS)


async def run(to: Target, tally: Tally) -> None:
    """See `benchmarks.suites.chaos.attacks`."""
    await flood(to.served.grpc, lambda: connection(to), "calls: ended", tally)
