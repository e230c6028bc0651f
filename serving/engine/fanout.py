"""One request on its way through the workers, and what became of it."""

from __future__ import annotations

import threading
import time
from asyncio import AbstractEventLoop, Future, get_running_loop
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sensai_serve.merge import Answer, Collector
from serving.backends import Cause, Scores


class Arrival(NamedTuple):
    """One worker's copies."""

    scores: Scores
    run_s: float
    """Time inside the subnet."""
    elapsed_s: float
    """Time from hand-over to here: the queue and the run."""


@dataclass(slots=True)
class FanOutResult:
    """The merged answer of a fan-out, and which copies it was made of."""

    inputs: npt.NDArray[np.float32]
    answer: Answer
    uncovered: tuple[int, ...]
    """Classes none of whose copies came or will come."""
    arrivals: dict[int, Arrival]
    """Of the workers that came in time."""
    erasures: dict[int, Cause]
    elapsed_s: float

    @property
    def queue_s(self) -> float:
        """Seconds from hand-over until the last of the arrived workers began; all of them where none arrived."""
        return max((a.elapsed_s - a.run_s for a in self.arrivals.values()), default=self.elapsed_s)


class FanOut:
    """A request's inputs and its collector, filled by worker threads, finished once.

    Workers that run on the event loop's own thread finish it before anybody waits; only then is there no future.
    """

    __slots__ = ("_arrivals", "_collector", "_erasures", "_future", "_impatient", "_lock", "_on_late", "_started",
                 "closed", "expires", "inputs", "result")  # fmt: skip

    def __init__(
        self,
        inputs: npt.NDArray[np.float32],
        collector: Collector,
        on_late: Callable[[FanOut, int, Arrival], None],
    ) -> None:
        """Start the clock; `serving.backends.Backend.submit` fans it out.

        Args:
            inputs: FP32 [N, *shape].
            collector: where copies go.
            on_late: told of copies that come after the answer, on the worker's thread.
        """
        self.inputs = inputs
        self.closed = False
        self.expires: float | None = None
        self.result: FanOutResult | None = None
        """What became of it; None while it is waited for."""
        self._collector = collector
        self._future: Future[FanOutResult] | None = None
        self._lock = threading.Lock()
        self._arrivals: dict[int, Arrival] = {}
        self._erasures: dict[int, Cause] = {}
        self._on_late = on_late
        self._impatient = False
        self._started = time.perf_counter()

    @property
    def answer(self) -> Answer | None:
        """The merged answer; None while it is waited for, and where nobody waited to the end."""
        return None if self.result is None else self.result.answer

    def wait(self) -> Future[FanOutResult]:
        """Resolves to the result. Called once, on the event loop's thread."""
        future: Future[FanOutResult] = get_running_loop().create_future()
        with self._lock:
            self._future = future
            if self.result is not None:
                future.set_result(self.result)
        return future

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """See `Task`."""
        arrival = Arrival(scores, seconds, time.perf_counter() - self._started)
        with self._lock:
            if not self.closed:
                if self._collector.add(worker, scores):
                    self._arrivals[worker] = arrival
                else:
                    self._erasures[worker] = Cause.INVALID
                self._look()
                return
        self._on_late(self, worker, arrival)

    def fail(self, worker: int, cause: Cause) -> None:
        """See `Task`."""
        with self._lock:
            if not self.closed:
                self._erasures[worker] = cause
                self._collector.erase(worker)
                self._look()

    def expire(self, cause: Cause) -> None:
        """Nothing more is waited for, whatever is missing."""
        with self._lock:
            if not self.closed:
                self._give_up(cause)

    def lose_patience(self) -> None:
        """Stragglers are given up as soon as no class depends on them."""
        with self._lock:
            self._impatient = True
            if not self.closed:
                self._look()

    def abandon(self) -> None:
        """Nobody wants the answer any more; workers drop the task."""
        self.closed = True

    def _look(self) -> None:
        if self._collector.done:
            self._close()
        elif self._impatient and self._collector.can_spare_the_rest:
            self._give_up(Cause.PATIENCE)

    def _give_up(self, cause: Cause) -> None:
        for worker in self._collector.awaited:
            self._erasures[worker] = cause
            self._collector.erase(worker)
        self._close()

    def _close(self) -> None:
        self.closed = True
        collector, elapsed = self._collector, time.perf_counter() - self._started
        self.result = FanOutResult(
            self.inputs, collector.answer(), collector.uncovered, self._arrivals, self._erasures, elapsed
        )
        if self._future is not None:
            self._future.get_loop().call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        assert self._future is not None
        assert self.result is not None
        if not self._future.done():
            self._future.set_result(self.result)


class Probe:
    """A task for one worker, outside any request: to see whether it works, and how fast."""

    closed = False
    expires: float | None = None

    def __init__(self, inputs: npt.NDArray[np.float32], loop: AbstractEventLoop) -> None:
        """Make a probe of FP32 [N, *shape]."""
        self.inputs = inputs
        self._loop = loop
        self._started = time.perf_counter()
        self.arrival: Future[Arrival | None] = loop.create_future()
        """Resolves to None where the worker failed."""

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """See `Task`."""
        self._settle(Arrival(scores, seconds, time.perf_counter() - self._started))

    def fail(self, worker: int, cause: Cause) -> None:
        """See `Task`."""
        self._settle(None)

    def _settle(self, arrival: Arrival | None) -> None:
        self._loop.call_soon_threadsafe(self._set, arrival)

    def _set(self, arrival: Arrival | None) -> None:
        if not self.arrival.done():
            self.arrival.set_result(arrival)
