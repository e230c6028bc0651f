"""Generates load from one thread: a closed loop of any number of clients, and an open loop of Poisson arrivals.

In a closed loop a client sends when its last reply is in, so a server that stalls is asked less just then, and the
stall counts once. In an open loop requests are due at Poisson arrivals whatever the server does, and a latency counts
from when its request was due, also when it could not be sent yet: no coordinated omission.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.harness.client import RawConnection
from benchmarks.harness.stats import Seconds
from sensai_serve.errors import ServingError

OK = 200
LOST = 0
"""The status of a request whose connection broke, or whose reply did not come within `GRACE_S`."""
GRACE_S = 10.0
"""Seconds that a reply is waited for."""


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """One request and its reply. Times on the clock of `time.perf_counter`."""

    request: int
    """Index of the request."""
    due: float
    sent: float
    done: float
    status: int
    reply: tuple[bytes, bytes]
    """Headers and body; both empty where replies are not kept."""

    @property
    def latency(self) -> float:
        """Seconds from when it was due until its reply was whole."""
        return self.done - self.due


def closed_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    *,
    clients: int = 1,
    count: int | None = None,
    seconds: float | None = None,
    keep_replies: bool = False,
    until: Callable[[], bool] = lambda: False,
) -> list[TimedRequest]:
    """Run clients that each send as soon as their last reply is in.

    Args:
        address: host and port.
        requests: sent in turn, from the first again after the last.
        clients: connections.
        count: ends after so many requests, or ...
        seconds: ... after so long, whichever comes first.
        keep_replies: keep headers and bodies.
        until: asked before every request; ends the loop when true.
    """
    stop = time.perf_counter() + (float("inf") if seconds is None else seconds)
    limit = float("inf") if count is None else count
    driver = _Driver(address, requests, clients, keep_replies)
    begun = 0
    with driver:
        while begun < limit and (now := time.perf_counter()) < stop and not until():
            if driver.idle:
                driver.begin(begun % len(requests), now)
                begun += 1
            else:
                driver.wait(stop - now)
        driver.drain()
    return driver.exchanges


def open_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    connections: int = 128,
    seed: int = 0,
    keep_replies: bool = False,
) -> list[TimedRequest]:
    """Send requests at Poisson arrivals, whatever the server does.

    Args:
        address: host and port.
        requests: sent in turn.
        rate: arrivals per second.
        seconds: how long requests arrive.
        connections: requests that can be outstanding at a time; further ones wait here while their clock runs.
        seed: seed of the arrivals.
        keep_replies: keep headers and bodies.
    """
    arrivals = deque(poisson_arrivals(rate, seconds, seed) + time.perf_counter())
    driver = _Driver(address, requests, connections, keep_replies)
    with driver:
        begun = 0
        while arrivals:
            now = time.perf_counter()
            if arrivals[0] > now:
                driver.wait(arrivals[0] - now)
            elif driver.idle:
                driver.begin(begun % len(requests), arrivals.popleft())
                begun += 1
                driver.wait(0)  # replies are taken as they come, or their latency would hold the sending of others
            else:
                driver.wait(GRACE_S)
        driver.drain()
    return driver.exchanges


def poisson_arrivals(rate: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Arrival times in [0, seconds) of a Poisson process: exponential gaps."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10))
    times = np.cumsum(gaps)
    return times[times < seconds]


def latencies(exchanges: Sequence[TimedRequest], status: int = OK) -> Seconds:
    """Latencies [n] in seconds of the requests that ended with this status."""
    return np.array([e.latency for e in exchanges if e.status == status])


class _Driver:
    """Connections, and which of them carry a request."""

    def __init__(
        self, address: tuple[str, int], requests: Sequence[bytes], connections: int, keep_replies: bool
    ) -> None:
        self.exchanges: list[TimedRequest] = []
        self.idle: list[RawConnection] = []
        self._address = address
        self._requests = requests
        self._keep = keep_replies
        self._busy: dict[int, tuple[RawConnection, int, float, float]] = {}
        self._unsent: set[int] = set()
        for _ in range(connections):
            self._connect()

    def __enter__(self) -> _Driver:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._all():
            connection.close()

    def begin(self, request: int, due: float) -> None:
        """Send a request on an idle connection, or on a new one where the server has closed that meanwhile."""
        if not self.idle[-1].is_open():
            self.idle.pop().close()
            self._connect()
        connection = self.idle.pop()
        number, now = connection.socket.fileno(), time.perf_counter()
        self._busy[number] = (connection, request, due, now)
        try:
            if not connection.begin(self._requests[request]):
                self._unsent.add(number)
        except OSError:
            self._end(number, LOST)

    def wait(self, seconds: float) -> None:
        """Move bytes for what is ready, at most so long until the first; give up what is out for too long."""
        timeout = max(0.0, min(seconds, GRACE_S))
        readable, writable, _ = select.select(list(self._busy), list(self._unsent), [], timeout)
        for number in writable:
            try:
                if self._busy[number][0].resume():
                    self._unsent.discard(number)
            except OSError:
                self._end(number, LOST)
        for number in readable:
            if number not in self._busy:
                continue
            connection = self._busy[number][0]
            try:
                if connection.receive():
                    self._end(number, connection.status)
            except BlockingIOError:
                continue
            except OSError:
                self._end(number, LOST)
        self._give_up(sent_before=time.perf_counter() - GRACE_S)

    def drain(self) -> None:
        """Wait for the replies that are out, not for ever."""
        while self._busy:
            self.wait(GRACE_S)

    def _give_up(self, sent_before: float) -> None:
        """End as lost what was sent before this time: a server may never answer, and keep its connections open."""
        while self._busy:
            number, (_, _, _, sent) = next(iter(self._busy.items()))  # the one that is out for longest
            if sent > sent_before:
                return
            self._end(number, LOST)

    def _end(self, number: int, status: int) -> None:
        connection, request, due, sent = self._busy.pop(number)
        self._unsent.discard(number)
        done = time.perf_counter()
        reply = connection.reply() if self._keep and status != LOST else (b"", b"")
        self.exchanges.append(TimedRequest(request, due, sent, done, status, reply))
        if status == LOST:
            connection.close()
            self._connect()
        else:
            self.idle.append(connection)

    def _connect(self) -> None:
        try:
            self.idle.append(RawConnection.open(*self._address, blocking=False))
        except OSError as error:
            raise ServingError(f"nobody answers at {self._address[0]}:{self._address[1]}: {error}") from None

    def _all(self) -> Iterator[RawConnection]:
        yield from self.idle
        yield from (connection for connection, *_ in self._busy.values())
