"""Sums up loads of several clients: throughput of a closed loop, latency at given rates of an open loop."""

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
    """Number of clients of a closed loop; None for an open one."""
    rate: float | None
    """Arrivals per second of an open loop; None for a closed one."""
    throughput: float
    """Answers with status 200 per second."""
    latency: Summary | None
    """Latency of those answers, counted from when each request was due; None where there are none."""
    statuses: dict[int, int]
    """Number of requests by HTTP status; status 0 means that no reply came."""
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
    """Run a closed loop of `clients` for `count` requests or `seconds`, whichever ends first. See `closed_loop`."""
    closed_loop(address, requests, clients=clients, count=4 * clients)
    exchanges = closed_loop(address, requests, clients=clients, count=count, seconds=seconds)
    return _load(subject, "closed", clients, None, exchanges)


def opened(
    subject: str, address: tuple[str, int], requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0
) -> LoadResult:
    """Run an open loop of Poisson arrivals at `rate` per second for `seconds`. See `open_loop`."""
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
