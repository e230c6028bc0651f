"""Servers under more than one client: throughput in a closed loop, latency at given rates in an open one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.load_generator import OK, TimedRequest, closed_loop, latencies, open_loop
from benchmarks.harness.stats import Summary, summarise


@dataclass(frozen=True)
class LoadResult:
    """One server under one load."""

    subject: str
    loop: str
    """``closed`` or ``open``."""
    clients: int | None
    """Of a closed loop."""
    rate: float | None
    """Of an open loop, arrivals per second."""
    throughput: float
    """Answers with status 200 per second."""
    latency: Summary | None
    """Of those answers; from when each request was due. None without any."""
    statuses: dict[int, int]
    """How many replies had each status; 0 for none at all."""
    lag_p99: float
    """Seconds by which 99% of the requests were sent late at most: what the load generator itself adds."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "subject": self.subject,
            "loop": self.loop,
            "clients": self.clients,
            "rate_per_s": self.rate,
            "throughput_per_s": round(self.throughput, 1),
            "latency": None if self.latency is None else self.latency.to_json(),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "send_lag_p99_us": round(self.lag_p99 * 1e6, 1),
        }


def closed(
    subject: str, address: tuple[str, int], requests: Sequence[bytes], *, clients: int, count: int, seconds: float
) -> LoadResult:
    """`clients` that each wait for their reply; at most `count` requests or `seconds`. See `closed_loop`."""
    closed_loop(address, requests, clients=clients, count=4 * clients)
    exchanges = closed_loop(address, requests, clients=clients, count=count, seconds=seconds)
    return _load(subject, "closed", clients, None, exchanges)


def opened(
    subject: str, address: tuple[str, int], requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0
) -> LoadResult:
    """Poisson arrivals at `rate` per second for `seconds`. See `open_loop`."""
    return _load(subject, "open", None, rate, open_loop(address, requests, rate=rate, seconds=seconds, seed=seed))


def _load(
    subject: str, loop: str, clients: int | None, rate: float | None, exchanges: Sequence[TimedRequest]
) -> LoadResult:
    good = latencies(exchanges)
    began, ended = min(e.due for e in exchanges), max(e.done for e in exchanges)
    lags = summarise([e.sent - e.due for e in exchanges])
    return LoadResult(
        subject=subject,
        loop=loop,
        clients=clients,
        rate=rate,
        throughput=sum(e.status == OK for e in exchanges) / (ended - began),
        latency=summarise(good) if len(good) else None,
        statuses=dict(Counter(e.status for e in exchanges)),
        lag_p99=lags.p99,
    )
