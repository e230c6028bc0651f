"""One request at the workers: its inputs go out, copies come in, and it ends with one result."""

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
    """One worker's copies, and how long they took."""

    scores: Scores
    run_s: float
    """Seconds inside the subnet."""
    elapsed_s: float
    """Seconds from the hand-over to the arrival: the wait for the worker, and the run."""


@dataclass(slots=True)
class FanOutResult:
    """The merged answer of a fan-out, and which copies it was made of."""

    inputs: npt.NDArray[np.float32]
    answer: Answer
    uncovered: tuple[int, ...]
    """Classes without any copy, arrived or awaited."""
    arrivals: dict[int, Arrival]
    """The copies that came in time, by worker."""
    erasures: dict[int, Cause]
    """Why each other worker was not waited for."""
    elapsed_s: float
    """Seconds from the hand-over until the answer was decided."""

    @property
    def queue_s(self) -> float:
        """Seconds from the hand-over until the last worker that arrived began its run; `elapsed_s` if none arrived."""
        return max((a.elapsed_s - a.run_s for a in self.arrivals.values()), default=self.elapsed_s)


class FanOut:
    """A request at the workers: a `serving.backends.Task` whose copies worker threads add, and which finishes once.

    Inline workers finish it before `wait` is called; no future is made then.
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
            collector: merges the copies.
            on_late: called, on the worker's thread, with each arrival that comes after the answer.
        """
        self.inputs = inputs
        self.closed = False
        self.expires: float | None = None
        self.result: FanOutResult | None = None
        """None until the fan-out has finished."""
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
        """The merged answer; None until the fan-out has finished."""
        return None if self.result is None else self.result.answer

    def wait(self) -> Future[FanOutResult]:
        """Return a future of the result. Called once at most, on the event loop's thread."""
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
                self._check()
                return
        self._on_late(self, worker, arrival)

    def fail(self, worker: int, cause: Cause) -> None:
        """See `Task`."""
        with self._lock:
            if not self.closed:
                self._erasures[worker] = cause
                self._collector.erase(worker)
                self._check()

    def expire(self, cause: Cause) -> None:
        """Finish now; copies that are missing become erasures of this cause."""
        with self._lock:
            if not self.closed:
                self._give_up(cause)

    def lose_patience(self) -> None:
        """From now on finish as soon as every class has enough copies without the stragglers."""
        with self._lock:
            self._impatient = True
            if not self.closed:
                self._check()

    def abandon(self) -> None:
        """Close without a result: workers drop the task."""
        self.closed = True

    def _check(self) -> None:
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
    """A task for one worker, outside any request, that shows whether the worker is sound and how fast it is."""

    closed = False
    expires: float | None = None

    def __init__(self, inputs: npt.NDArray[np.float32], loop: AbstractEventLoop) -> None:
        """Start the clock.

        Args:
            inputs: FP32 [N, *shape].
            loop: the event loop that `arrival` belongs to.
        """
        self.inputs = inputs
        self._loop = loop
        self._started = time.perf_counter()
        self.arrival: Future[Arrival | None] = loop.create_future()
        """The worker's copies; None if the worker failed."""

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
