"""The in-process backend: ONNX Runtime sessions on persistent threads, which release the GIL while they run.

Each worker has a thread of its own, pinned to its device's core, so that workers on one core are interleaved by the
kernel and a slow one does not hold up the others. A thread that hangs inside a run cannot be ended: its worker's copies
are erasures until the server restarts (the `process` backend restarts the worker alone).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from serving.backends import Plan
from serving.devices import require
from serving.faults import Runs, with_faults
from serving.job import Cause, Task
from serving.session import Session

HOLDS = 2
"""Open tasks that wait for one worker at most."""
JOIN_S = 1.0
"""How long `stop` waits for one thread; what hangs is left behind."""


class Lane:
    """A thread that runs one worker."""

    def __init__(self, worker: int, session: Runs, core: int | None) -> None:
        """Start the thread.

        Args:
            worker: whose it is.
            session: what it runs; nobody else may.
            core: what it is pinned to, None for any.
        """
        self.worker = worker
        self._session = session
        self._core = core
        self._tasks: deque[Task] = deque()  # the running one is not among them
        self._asleep = False
        self._stopping = False
        self._lock = threading.Lock()
        # Held while there is nothing to do: a binary semaphore that costs one system call to wake the thread.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread = threading.Thread(target=self._loop, name=f"worker-{worker}", daemon=True)
        self._thread.start()

    def offer(self, task: Task) -> bool:
        """Leave a task for the thread; False where it holds as many open ones as it may.

        What is running does not count: a task that is answered while a slow worker still runs it must not cost the
        worker its place in the next one.
        """
        with self._lock:
            tasks = self._tasks
            while tasks and tasks[0].closed:
                tasks.popleft()
            if len(tasks) >= HOLDS:
                return False
            tasks.append(task)
            wake, self._asleep = self._asleep, False
        if wake:
            self._wake.release()
        return True

    def stop(self) -> None:
        """Tell the thread to end after what it is running."""
        with self._lock:
            self._stopping = True
            wake, self._asleep = self._asleep, False
        if wake:
            self._wake.release()

    def join(self) -> None:
        """Wait for the thread to end, not for ever."""
        self._thread.join(JOIN_S)

    def _loop(self) -> None:
        if self._core is not None:
            with contextlib.suppress(OSError):  # a cpuset may have changed since the start; unpinned works too
                os.sched_setaffinity(0, {self._core})
        while (task := self._next()) is not None:
            if not task.closed:
                self._run(task)
        for task in self._tasks:
            task.fail(self.worker, Cause.DEAD)

    def _next(self) -> Task | None:
        """The next task, waited for; None at the end."""
        while True:
            with self._lock:
                if self._stopping:
                    return None
                if self._tasks:
                    return self._tasks.popleft()
                self._asleep = True
            self._wake.acquire()

    def _run(self, task: Task) -> None:
        started = time.perf_counter()
        try:
            scores = self._session.run(task.inputs)
        except Exception:  # whatever a run raises costs this worker's copies, not the answer
            task.fail(self.worker, Cause.FAILED)
            return
        task.deliver(self.worker, scores, time.perf_counter() - started)


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: Plan) -> None:
        """Check the devices.

        Raises:
            DeviceError: one that this machine does not have.
        """
        require(plan.devices)
        self._plan = plan
        self._lanes: list[Lane] = []

    def start(self) -> None:
        """Open and warm every session."""
        plan = self._plan
        for subnet in plan.bundle.manifest.subnets:
            device = plan.device(subnet.worker)
            session = Session.of_worker(plan.bundle, subnet.worker, device)
            runs = with_faults(session, subnet.worker, plan.faults, own_process=False)
            self._lanes.append(Lane(subnet.worker, runs, device.index if device.kind == "cpu" else None))
            plan.on_up(subnet.worker)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out."""
        for worker in workers:
            if task.closed:
                return
            if not self._lanes[worker].offer(task):
                task.fail(worker, Cause.FULL)

    def stop(self) -> None:
        """End every thread; one that hangs is left behind."""
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join()
