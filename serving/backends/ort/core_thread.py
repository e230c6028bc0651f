"""A thread that runs the workers of one device one after another: task after task, and each as its task chooses."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from serving.backends import HOLDS, Cause, Task
from serving.backends.ort.pace import Pace
from serving.runtime.faults import Runnable

JOIN_S = 1.0
"""Seconds that the threads of a model have to end; one that hangs is left behind."""


@dataclass(frozen=True)
class LoadedWorker:
    """One worker whose session is loaded."""

    id: int
    session: Runnable
    typical_s: float
    """Seconds that one input takes when nothing else runs."""
    pace: Pace
    """How its runs compare with that."""

    def run(self, task: Task) -> float:
        """Run a task on the calling thread and deliver its scores; return the seconds that the run took."""
        started = perf_counter()
        try:
            scores = self.session.run(task.inputs)
        except Exception:  # whatever a run raises costs this worker's copies, not the answer
            task.fail(self.id, Cause.FAILED)
            return perf_counter() - started
        seconds = perf_counter() - started
        task.deliver(self.id, scores, seconds)
        return seconds


class CoreThread:
    """A queue of tasks for some workers, and the thread that runs them.

    Workers that share a core run one after another and not at once: the first are done sooner, the vote may be decided
    by then, and the rest is dropped unrun.
    """

    def __init__(
        self,
        workers: Mapping[int, LoadedWorker],
        core: int | None,
        waiting: Sequence[tuple[int, Task]] = (),
        warm: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            workers: the workers, by id.
            core: the core that the thread is pinned to; None for any.
            waiting: workers and the tasks that wait for them from the start.
            warm: called first on the thread: a CUDA graph belongs to the thread that recorded it.
        """
        self.workers = dict(workers)
        self.core = core
        self._waiting: deque[tuple[int, Task]] = deque(waiting)  # without the running one
        self._warm = warm
        self._running: tuple[int, float, int] | None = None  # worker, since when, rows
        self._asleep = False
        self._stopping = False
        self._lock = threading.Lock()
        # Held while there is nothing to do: as a binary semaphore it wakes the thread with one system call.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread = threading.Thread(target=self._loop, name=f"workers-{min(workers)}", daemon=True)
        self._thread.start()

    def offer(self, task: Task, workers: Sequence[int]) -> list[int]:
        """Queue a task for some of the workers and wake the thread.

        A running task does not count as held: when it is answered while a slow worker still runs it, that worker must
        be able to take the next one.

        Returns:
            The workers that have `HOLDS` open tasks waiting already and did not take it; all of them once the thread
            was given up.
        """
        full: list[int] = []
        with self._lock:
            if self._stopping:
                return list(workers)
            waiting = self._waiting
            while waiting and waiting[0][1].closed:
                waiting.popleft()
            if waiting:
                held = Counter(worker for worker, other in waiting if not other.closed)
                full = [worker for worker in workers if held[worker] >= HOLDS]
            waiting.extend((worker, task) for worker in workers if worker not in full)
            wake, self._asleep = self._asleep, False
        if wake:
            self._wake.release()
        return full

    def overrun(self, now: float) -> int | None:
        """Return the running worker if its run is over its limit at `now` of `time.perf_counter`; else None."""
        if (running := self._running) is None:
            return None
        worker, since, rows = running
        return worker if now - since > self.workers[worker].pace.limit_s * rows else None

    @property
    def busy(self) -> bool:
        """Whether a task runs or waits."""
        return self._running is not None or bool(self._waiting)

    def part_from(self, worker: int) -> CoreThread | None:
        """Leave a worker alone on this thread and move the others and their tasks to a new one.

        Returns:
            The new thread; None if the worker does not run any more, and nothing was changed.
        """
        with self._lock:
            if self._running is None or self._running[0] != worker:
                return None
            others = {other: self.workers.pop(other) for other in list(self.workers) if other != worker}
            theirs = [entry for entry in self._waiting if entry[0] != worker]
            self._waiting = deque(entry for entry in self._waiting if entry[0] == worker)
            self.workers[worker].pace.calm = 0
        return CoreThread(others, self.core, theirs)

    def adopt(self, worker: LoadedWorker, waiting: Sequence[tuple[int, Task]]) -> None:
        """Add a worker, and the tasks that wait for it."""
        with self._lock:
            self.workers[worker.id] = worker
        for number, task in waiting:
            self.offer(task, [number])

    def give_up(self) -> list[tuple[int, Task]]:
        """End the thread after the running task; return the tasks that wait."""
        with self._lock:
            self._stopping = True
            waiting = list(self._waiting)
            self._waiting.clear()
            wake, self._asleep = self._asleep, False
        if wake:
            self._wake.release()
        return waiting

    def join(self, until: float) -> None:
        """Wait for the thread to end, at most until then on the clock of `time.perf_counter`."""
        self._thread.join(max(0.0, until - perf_counter()))

    def _loop(self) -> None:
        if self.core is not None:
            with contextlib.suppress(OSError, AttributeError):  # a cpuset that has changed, or none: unpinned works too
                os.sched_setaffinity(0, {self.core})
        if self._warm is not None:
            with contextlib.suppress(Exception):  # it ran at the start; if it fails now, its tasks will fail
                self._warm()
        while (entry := self._next()) is not None:
            number, task = entry
            worker = self.workers[number]
            worker.pace.record(within=worker.run(task) <= worker.pace.limit_s * len(task.inputs))

    def _next(self) -> tuple[int, Task] | None:
        """Wait for the next open task; None when the thread is to end."""
        while True:
            with self._lock:
                self._running = None
                if self._stopping:
                    return None
                while self._waiting:
                    worker, task = self._waiting.popleft()
                    if not task.closed:
                        worker = self._chosen(worker, task)
                        self._running = worker, perf_counter(), len(task.inputs)
                        return worker, task
                self._asleep = True
            self._wake.acquire()

    def _chosen(self, first: int, task: Task) -> int:
        """The worker that a task is run by next, of `first`, which has been taken from the queue, and those in it."""
        others = [worker for worker, other in self._waiting if other is task]
        if not others or (chosen := task.next_of([first, *others])) == first:
            return first
        self._waiting.remove((chosen, task))
        self._waiting.appendleft((first, task))
        return chosen
