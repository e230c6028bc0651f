"""What the gateway knows of each worker process and of the workers in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.backends import BackendPlan, Cause, Task
from serving.runtime.devices import Device

HANG_S = 2.0
"""A run is hung after this many seconds, or ..."""
HANG_FACTOR = 20.0
"""... so many times the longest run that ended, whichever is longer. The same factor holds for a start."""
RESTART_S = 10.0
"""A process that is started again is hung after this many seconds at the earliest."""


@dataclass
class WorkerHandle:
    """One worker."""

    id: int
    """Its id in the bundle."""
    at: int
    """Its place in the shared memory."""
    network_fd: int
    wake_fd: int
    up: bool = False
    """Loaded."""
    answered: int = 0
    """Tasks, since its process was started."""
    given: int = 0
    reads: int = 0
    longest_run_s: float = 0.0
    busy_since: float = 0.0
    """When it was given its oldest task, or answered the one before."""
    tasks: deque[tuple[int, Task]] = field(default_factory=deque)
    """Word and task, oldest first, as they stand in its ring: those that it has not answered or dropped yet."""
    held: deque[tuple[int, Task]] = field(default_factory=deque)
    """What is handed over next: a straggler's ring may be full of tasks that were answered without it."""

    def take(self, word: int) -> Task | None:
        """Take the task of that word off, and those before it, which were dropped; None where it was given up."""
        if all(word != w for w, _ in self.tasks):
            return None
        while True:
            w, task = self.tasks.popleft()
            if w == word:
                return task

    def went_down(self) -> None:
        """Fail what it was given, and forget a wake-up that nobody took."""
        self.up = False
        for tasks in (self.tasks, self.held):
            while tasks:
                tasks.popleft()[1].fail(self.id, Cause.DEAD)
        os.set_blocking(self.wake_fd, False)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)
        os.set_blocking(self.wake_fd, True)


@dataclass
class WorkerProcess:
    """One process."""

    device: Device
    workers: list[WorkerHandle]
    popen: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started: float = 0.0
    longest_start_s: float = 0.0
    failures: int = 0
    """Times in a row that it ended before its workers had served."""

    def __str__(self) -> str:
        ids = [str(worker.id) for worker in self.workers]
        return f"worker {ids[0]}" if len(ids) == 1 else f"workers {', '.join(ids)}"

    def hung(self, now: float) -> str:
        """Why it is taken to be hung at that time; nothing where it is not."""
        for worker in self.workers:
            limit = max(HANG_S, HANG_FACTOR * worker.longest_run_s)
            if worker.tasks and now - worker.busy_since > limit:
                return f"worker {worker.id} has been silent for {limit:.1f} s"
        limit = max(RESTART_S, HANG_FACTOR * self.longest_start_s)
        if self.longest_start_s and not all(worker.up for worker in self.workers) and now - self.started > limit:
            return f"{self} did not start within {limit:.1f} s"
        return ""


def processes(plan: BackendPlan, workers: Sequence[WorkerHandle]) -> list[WorkerProcess]:
    """One for each worker, or for each device that has any, as the plan says."""
    groups: dict[int, list[WorkerHandle]] = {}
    for worker in workers:
        key = worker.id if plan.processes == "worker" else plan.device_of[worker.id]
        groups.setdefault(key, []).append(worker)
    return [WorkerProcess(plan.device(group[0].id), group) for group in groups.values()]
