"""The gateway's side of the shared memory: tasks go out to the workers, and their results come in.

A task's inputs are written once, and a word for each worker. Where most workers have a task they are woken through one
eventfd that all wait for, else each through its own; the gateway is woken through one that all workers share.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence

from serving.backends import HOLDS, Cause, Task
from serving.backends.process.handles import WorkerHandle
from serving.backends.process.shared import DROPPED, OK, RING, Memory, Record, unpack
from serving.backends.process.slots import Slots


class Exchange:
    """Hands tasks to workers and their results back. All calls on the event loop's thread."""

    def __init__(self, memory: Memory, workers: Mapping[int, WorkerHandle], wake_all_fd: int) -> None:
        """No worker has a task.

        Args:
            memory: what the workers and the gateway share.
            workers: the workers by id, in the order of their places in the memory.
            wake_all_fd: the eventfd that wakes every worker.
        """
        self._memory = memory
        self._worker = workers
        self._wake_all_fd = wake_all_fd
        self._slots = Slots(memory)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Write a task's inputs to the shared memory and wake the workers; see `serving.backends.Backend.submit`."""
        self.collect()
        word = self._slots.write(task)
        if word is None:
            for w in workers:
                task.fail(w, Cause.FULL)
            return
        now, woken = time.monotonic(), list[WorkerHandle]()
        for w in workers:
            worker = self._worker[w]
            if not worker.up:
                task.fail(w, Cause.DEAD)
                continue
            if worker.tasks or worker.held:
                worker.held = deque((w, t) for w, t in worker.held if not t.closed)
                if len(worker.held) + sum(not t.closed for _, t in worker.tasks) >= HOLDS:
                    task.fail(w, Cause.FULL)
                    continue
            if worker.held or len(worker.tasks) == RING:
                worker.held.append((word, task))
                continue
            self._give(worker, word, task, now)
            woken.append(worker)
        self._wake(woken)

    def _give(self, worker: WorkerHandle, word: int, task: Task, now: float) -> None:
        """Put a task into a worker's ring, which has room; the worker is yet to be woken."""
        if not worker.tasks:
            worker.busy_since = now
        worker.tasks.append((word, task))
        self._memory.mailboxes[worker.at][worker.given % RING] = word
        worker.given += 1

    def _wake(self, workers: Sequence[WorkerHandle]) -> None:
        """Wake workers; by one system call where they are most of all, whose others then look for tasks in vain."""
        if 2 * len(workers) > len(self._worker):
            os.eventfd_write(self._wake_all_fd, 1)
            return
        for worker in workers:
            os.eventfd_write(worker.wake_fd, 1)

    def _hand_over(self, worker: WorkerHandle) -> None:
        """Give a worker the tasks that are held for it, as far as its ring has room."""
        given = worker.given
        while worker.held and len(worker.tasks) < RING:
            word, task = worker.held.popleft()
            if not task.closed:
                self._give(worker, word, task, time.monotonic())
        if worker.given > given:
            self._wake([worker])

    def collect(self) -> None:
        """Deliver the results that the workers have written."""
        for worker, count in zip(self._worker.values(), self._memory.counts.tolist(), strict=True):
            if count == worker.reads:
                continue
            records, now = self._memory.records[worker.at], time.monotonic()
            while worker.reads < count and worker.tasks:
                record = records[worker.reads % RING]
                worker.reads += 1
                self._deliver(worker, record, now)
            if worker.held:
                self._hand_over(worker)

    def _deliver(self, worker: WorkerHandle, record: Record, now: float) -> None:
        """Deliver the result of a worker's oldest task: it answers or drops them in their order."""
        word, task = worker.tasks.popleft()
        written, status = record.head
        seconds = record.seconds[0]
        worker.longest_run_s = max(worker.longest_run_s, seconds)
        worker.busy_since = now
        if status == DROPPED:
            return
        worker.answered += 1
        if status == OK and written == word:
            task.deliver(worker.id, record.scores[: unpack(word)[2]].copy(), seconds)
        else:
            task.fail(worker.id, Cause.FAILED)
        if task.closed:
            self._slots.drop(word)
