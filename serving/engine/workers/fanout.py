"""One request at the workers: its inputs go out, copies come in, and it ends with one result.

A request may ask its workers in waves: the first, and the next only if the copies of those before do not end its wait.
"""

from __future__ import annotations

import threading
import time
from asyncio import AbstractEventLoop, Future, TimerHandle, get_running_loop
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, NamedTuple

from sensai_serve.merge import Answer, Collector, Wait
from sensai_serve.tensors import Inputs
from serving.backends import Cause, Scores
from serving.engine.workers.waves import WaveQueue


class Arrival(NamedTuple):
    """One worker's copies, and how long they took."""

    scores: Scores
    run_s: float
    """Seconds inside the subnet."""
    elapsed_s: float
    """Seconds from when the worker was asked to the arrival: the wait for the worker, and the run."""


@dataclass(slots=True)
class FanOutResult:
    """The merged answer of a fan-out, and which copies it was made of."""

    inputs: Inputs
    answer: Answer
    uncovered: tuple[int, ...]
    """Classes without any copy, arrived or awaited."""
    arrivals: dict[int, Arrival]
    """The copies that came in time, by worker."""
    erasures: dict[int, Cause]
    """Why each other worker was not waited for."""
    elapsed_s: float
    """Seconds from the hand-over until the answer was decided."""
    waves: WaveQueue | None = None
    """When each worker was asked, and who was not; None where all were asked at once."""
    wait: Wait = "decided"
    """What the request waited for."""

    @property
    def few_copies(self) -> bool:
        """Whether the answer may have too few copies for a wrong worker to show."""
        return self.waves is not None or self.wait == "first"

    @property
    def unasked(self) -> int:
        """Number of workers that were not asked, because the answer did not need them."""
        return 0 if self.waves is None else self.waves.unasked

    def waited_s(self, worker: int) -> float:
        """Seconds from when a worker was asked until the answer was decided."""
        return self.elapsed_s - (0.0 if self.waves is None else self.waves.asked_s(worker))

    @property
    def queue_s(self) -> float:
        """Seconds from the hand-over until the last worker that arrived began its run; `elapsed_s` if none arrived."""
        return max((a.elapsed_s - a.run_s for a in self.arrivals.values()), default=self.elapsed_s)


class FanOut:
    """A request at the workers: a `serving.backends.Task` whose copies worker threads add, and which finishes once.

    Inline workers finish it before `wait` is called; no future is made then. A merge rule may be anybody's code: what
    it raises ends this request, and nothing else.
    """

    __slots__ = ("_arrivals", "_collector", "_erasures", "_error", "_future", "_impatient", "_lock", "_may_act",
                 "_on_late", "_started", "_waves", "closed", "expires", "inputs", "result", "timer")  # fmt: skip

    def __init__(
        self,
        inputs: Inputs,
        collector: Collector,
        on_late: Callable[[FanOut, int, Arrival], None],
    ) -> None:
        """Start the clock; `serving.backends.Backend.submit` fans it out.

        Args:
            inputs: of N inputs, as the network takes them.
            collector: merges the copies.
            on_late: called, on the worker's thread, with each arrival that comes after the answer.
        """
        self.inputs = inputs
        self.closed = False
        self.expires: float | None = None
        self.timer: TimerHandle | None = None
        """Ends the patience with the workers asked last."""
        self.result: FanOutResult | None = None
        """None until the fan-out has finished."""
        self._collector = collector
        self._future: Future[FanOutResult] | None = None
        self._error: Exception | None = None  # what the merge has raised
        self._lock = threading.Lock()
        self._arrivals: dict[int, Arrival] = {}
        self._erasures: dict[int, Cause] = {}
        self._on_late = on_late
        self._impatient = False
        self._waves: WaveQueue | None = None
        self._may_act = False  # to ask another wave, or to give stragglers up
        self._started = time.perf_counter()

    def ask_in(self, waves: Sequence[Sequence[int]], on_due: Callable[[], None]) -> None:
        """Ask workers in waves. Called before any worker has been asked.

        Args:
            waves: the workers of each wave; those of no wave have failed.
            on_due: called, on the event loop's thread, when `next_wave` has a wave again after it had none.
        """
        loop, context = get_running_loop(), copy_context()  # the workers' threads do not know the request's trace

        def call() -> None:
            loop.call_soon_threadsafe(on_due, context=context)

        self._waves, self._may_act = WaveQueue(waves, call), True

    def next_wave(self) -> Sequence[int]:
        """Take the workers that are to be asked now; empty where none are. Called on the event loop's thread."""
        with self._lock:
            return () if self.closed or self._waves is None else self._waves.take(time.perf_counter() - self._started)

    @property
    def answer(self) -> Answer | None:
        """The merged answer; None until the fan-out has finished."""
        return None if self.result is None else self.result.answer

    def next_of(self, workers: Sequence[int]) -> int:
        """See `Task`."""
        with self._lock:
            try:
                return workers[0] if self.closed else self._collector.next_of(workers)
            except Exception as error:
                self._break(error)
                return workers[0]

    def wait(self) -> Future[FanOutResult]:
        """Return a future of the result, or of what the merge has raised.

        Called once at most, on the event loop's thread.
        """
        future: Future[FanOutResult] = get_running_loop().create_future()
        with self._lock:
            self._future = future
            if self.closed:
                self._finish()
        return future

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """See `Task`."""
        arrival = Arrival(scores, seconds, time.perf_counter() - self._started)
        with self._lock:
            if not self.closed:
                self._merge(self._take, worker, arrival)
                return
        if self._waves is not None:
            arrival = self._since_asked(worker, arrival)
        self._on_late(self, worker, arrival)

    def fail(self, worker: int, cause: Cause) -> None:
        """See `Task`."""
        with self._lock:
            if not self.closed:
                self._merge(self._erase, worker, cause)

    def expire(self, cause: Cause) -> None:
        """Finish now; copies that are missing become erasures of this cause."""
        with self._lock:
            if not self.closed:
                self._merge(self._give_up, cause)

    def lose_patience(self) -> None:
        """Ask the next wave beside the stragglers; after the last, finish once there are enough copies without them."""
        with self._lock:
            self._impatient = self._may_act = True
            if not self.closed:
                self._merge(self._check)

    def abandon(self) -> None:
        """Close without a result: workers drop the task."""
        self.closed = True
        if self._waves is not None:
            self._waves.close()

    def _merge(self, step: Callable[..., None], *given: Any) -> None:
        """Take one step of the merge; where it raises, finish without a result."""
        try:
            step(*given)
        except Exception as error:
            self._break(error)

    def _take(self, worker: int, arrival: Arrival) -> None:
        if self._collector.add(worker, arrival.scores):
            self._arrivals[worker] = arrival
        else:
            self._erasures[worker] = Cause.INVALID
        self._check()

    def _erase(self, worker: int, cause: Cause) -> None:
        self._erasures[worker] = cause
        self._collector.erase(worker)
        self._check()

    def _check(self) -> None:
        if self._collector.done:
            self._close()
        elif self._may_act:
            self._act()

    def _act(self) -> None:
        if self._waves is not None and self._waves.left:
            if self._impatient or self._waves.is_over(self._collector.awaited):
                self._impatient = False
                self._waves.make_due()
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
        if self._waves is not None:
            self._waves.close()
            self._arrivals = {worker: self._since_asked(worker, a) for worker, a in self._arrivals.items()}
        self.result = FanOutResult(
            self.inputs,
            collector.answer(),
            collector.uncovered,
            self._arrivals,
            self._erasures,
            elapsed,
            self._waves,
            collector.wait,
        )
        if self._future is not None:
            self._future.get_loop().call_soon_threadsafe(self._finish)

    def _break(self, error: Exception) -> None:
        self.closed, self._error = True, error
        if self._waves is not None:
            self._waves.close()
        if self._future is not None:
            self._future.get_loop().call_soon_threadsafe(self._finish)

    def _since_asked(self, worker: int, arrival: Arrival) -> Arrival:
        assert self._waves is not None
        return arrival._replace(elapsed_s=arrival.elapsed_s - self._waves.asked_s(worker))

    def _finish(self) -> None:
        assert self._future is not None
        if self._future.done():
            return
        if self._error is not None:
            self._future.set_exception(self._error)
        else:
            assert self.result is not None
            self._future.set_result(self.result)


class Probe:
    """A task for one worker, outside any request, that shows whether the worker is sound and how fast it is."""

    closed = False
    expires: float | None = None

    def __init__(self, inputs: Inputs, loop: AbstractEventLoop) -> None:
        """Start the clock.

        Args:
            inputs: of N inputs, as the network takes them.
            loop: the event loop that `arrival` belongs to.
        """
        self.inputs = inputs
        self._loop = loop
        self._started = time.perf_counter()
        self.arrival: Future[Arrival | None] = loop.create_future()
        """The worker's copies; None if the worker failed."""

    def next_of(self, workers: Sequence[int]) -> int:
        """See `Task`."""
        return workers[0]

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
