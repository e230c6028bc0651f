"""What the gateway knows about each worker process and about the workers in it."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.backends import BackendPlan, Cause, Task

HANG_S = 2.0
"""A run is hung after this many seconds at the earliest."""
HANG_FACTOR = 20.0
"""A run or a start is hung after this many times the longest one that ended, if that is longer."""
RESTART_S = 10.0
"""A restart is hung after this many seconds at the earliest."""


@dataclass
class WorkerHandle:
    """One worker: its tasks, and what wakes it."""

    id: int
    """Its id in the bundle."""
    at: int
    """Its place in the shared memory."""
    network_fd: int
    """A file in memory that holds its subnet."""
    wake_fd: int
    """The eventfd that wakes it alone."""
    up: bool = False
    """Whether its subnet is loaded."""
    answered: int = 0
    """Tasks that it answered since its process started."""
    given: int = 0
    """Words written to its mailbox since its process started."""
    reads: int = 0
    """Records read from it since its process started."""
    longest_run_s: float = 0.0
    busy_since: float = 0.0
    """`time.monotonic` when its oldest task became its next to run."""
    tasks: deque[tuple[int, Task]] = field(default_factory=deque)
    """Words and tasks in its ring that it has not answered or dropped yet, oldest first."""
    held: deque[tuple[int, Task]] = field(default_factory=deque)
    """Words and tasks that wait for room in its ring: a straggler's may be full of tasks answered without it."""

    @classmethod
    def make(cls, worker: int, at: int) -> WorkerHandle:
        """Make the files of a worker that has this place in the shared memory."""
        return cls(worker, at, os.memfd_create(f"subnet-{worker}", os.MFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC))

    def went_down(self) -> None:
        """Fail the worker's tasks."""
        self.up = False
        for tasks in (self.tasks, self.held):
            while tasks:
                tasks.popleft()[1].fail(self.id, Cause.DEAD)


@dataclass
class WorkerProcess:
    """One process, and the workers in it."""

    workers: list[WorkerHandle]
    popen: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started: float = 0.0
    longest_start_s: float = 0.0
    failures: int = 0
    """How many times in a row it ended before its workers had served."""

    def __str__(self) -> str:
        ids = [str(worker.id) for worker in self.workers]
        return f"worker {ids[0]}" if len(ids) == 1 else f"workers {', '.join(ids)}"

    def hung(self, now: float) -> str:
        """Say why the process is hung at `now`, in seconds of `time.monotonic`; empty if it is not."""
        for worker in self.workers:
            limit = max(HANG_S, HANG_FACTOR * worker.longest_run_s)
            if worker.tasks and now - worker.busy_since > limit:
                return f"worker {worker.id} has been silent for {limit:.1f} s"
        limit = max(RESTART_S, HANG_FACTOR * self.longest_start_s)
        if self.longest_start_s and not all(worker.up for worker in self.workers) and now - self.started > limit:
            return f"{self} did not start within {limit:.1f} s"
        return ""


def processes(plan: BackendPlan, workers: Sequence[WorkerHandle]) -> list[WorkerProcess]:
    """Group workers into processes: one for each worker, or one for each device that has any, as the plan says."""
    groups: dict[int, list[WorkerHandle]] = {}
    for worker in workers:
        key = worker.id if plan.processes == "worker" else plan.device_of[worker.id]
        groups.setdefault(key, []).append(worker)
    return [WorkerProcess(group) for group in groups.values()]
