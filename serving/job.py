"""One request on its way through the workers."""

from __future__ import annotations

import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from sensai_serve.merge import Answer, Collector


class Cause(StrEnum):
    """Why copies are not waited for."""

    DEAD = "dead"
    """The worker is not running."""
    FULL = "full"
    """The worker has one job running and one waiting already."""
    FAILED = "failed"
    """The worker raised."""
    INVALID = "invalid"
    """NaN, infinite, out of [0, 1], or of another shape."""
    DEADLINE = "deadline"
    """The request's time was up."""
    PATIENCE = "patience"
    """The worker took much longer than healthy ones do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    answer: Answer
    uncovered: tuple[int, ...]
    """Classes none of whose copies came or will come."""
    seconds: dict[int, float]
    """For each worker that arrived in time, how long its subnet took."""
    erasures: dict[int, Cause]


class Job:
    """A request's inputs and its collector, filled by worker threads, finished once on the event loop.

    `deliver` and `fail` may be called from any thread. `closed` turns true when the answer stands or nobody wants it
    any more; workers look at it before they start and drop what is closed.
    """

    __slots__ = ("_collector", "_erasures", "_future", "_lock", "_loop", "_on_late", "_seconds", "closed", "inputs",
                 "started")  # fmt: skip

    def __init__(
        self,
        inputs: npt.NDArray[np.float32],
        collector: Collector,
        loop: AbstractEventLoop,
        on_late: Callable[[int, float], None] | None = None,
    ) -> None:
        """Make a job.

        Args:
            inputs: FP32 [N, *shape], read by all workers, written by none.
            collector: where copies go.
            loop: the event loop that awaits `outcome`.
            on_late: told of a worker and its seconds when its copies come after the answer.
        """
        self.inputs = inputs
        self.closed = False
        self.started = time.perf_counter()
        self._collector = collector
        self._loop = loop
        self._future: Future[Outcome] = loop.create_future()
        self._lock = threading.Lock()
        self._seconds: dict[int, float] = {}
        self._erasures: dict[int, Cause] = {}
        self._on_late = on_late

    @property
    def outcome(self) -> Future[Outcome]:
        """Resolves when the wait is over."""
        return self._future

    def deliver(self, worker: int, scores: npt.NDArray[np.float32], seconds: float) -> None:
        """A worker's scores FP32 [N, k], and how long its subnet took."""
        with self._lock:
            if not self.closed:
                self._seconds[worker] = seconds
                if not self._collector.add(worker, scores):
                    self._erasures[worker] = Cause.INVALID
                    del self._seconds[worker]
                if self._collector.done:
                    self._close()
                return
        if self._on_late is not None:
            self._on_late(worker, seconds)

    def fail(self, worker: int, cause: Cause) -> None:
        """A worker's scores will not come."""
        with self._lock:
            if not self.closed:
                self._erasures[worker] = cause
                self._collector.erase(worker)
                if self._collector.done:
                    self._close()

    def expire(self, cause: Cause) -> None:
        """Nothing more is waited for."""
        with self._lock:
            if not self.closed:
                for worker in self._collector.awaited:
                    self._erasures[worker] = cause
                    self._collector.erase(worker)
                self._close()

    def abandon(self) -> None:
        """Nobody wants the answer any more; workers drop the job."""
        self.closed = True

    def _close(self) -> None:
        self.closed = True
        collector = self._collector
        outcome = Outcome(collector.answer(), collector.uncovered, self._seconds, self._erasures)
        self._loop.call_soon_threadsafe(self._finish, outcome)

    def _finish(self, outcome: Outcome) -> None:
        if not self._future.done():
            self._future.set_result(outcome)
