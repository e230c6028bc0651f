"""Faults that begin and end while a model serves: a backend around another one, whatever runs the workers.

`runtime.faults` are part of how a worker is started. These are set later, one for each worker, and need nothing from
what runs it: tasks for a worker with a fault are held back, failed, or told other scores. Only a kill is real where the
backend can do that.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sensai_serve.errors import InputError, RequestError
from sensai_serve.tensors import Inputs
from serving.backends import HOLDS, Backend, BackendPlan, Cause, Execution, Killable, SaysWhere, Scores, Task
from serving.runtime.faults import Fault, parse_fault

KILL = "kill"
"""The fault of a worker that is gone."""
EXPECTED = f"{KILL}, delay=50ms, delay=exp(20ms), drop=0.1, random, nan, or several of them with commas in between"


class FaultControl:
    """A backend whose workers can be given faults; see `serving.backends.Backend` for who may call what."""

    def __init__(self, backend: Backend, plan: BackendPlan, recheck: Callable[[int], None]) -> None:
        """No worker has a fault.

        Args:
            backend: what runs the workers.
            plan: that backend's plan.
            recheck: called with a worker that may be sound again.
        """
        self._backend = backend
        self._plan = plan
        self._recheck = recheck
        self._loop = asyncio.get_running_loop()
        self._faults: dict[int, Fault | None] = {}  # None for a killed worker
        self._lines: dict[int, _DelayLine] = {}

    @property
    def faults(self) -> Mapping[int, str]:
        """The fault of each worker that has one."""
        return {w: KILL if fault is None else fault.spec.partition(":")[2] for w, fault in self._faults.items()}

    def set(self, worker: int, spec: str) -> None:
        """Give a worker a fault in place of the one that it has.

        A killed worker whose backend can kill is ended and starts again by itself, as after any death; so it keeps no
        fault. Others stay dead until their fault is taken away.

        Args:
            worker: its id.
            spec: ``kill``, or what ``--fault`` takes after the worker, without ``crash``, ``hang``, ``oom``, ``after``
                and ``until``; empty to take the fault away.

        Raises:
            RequestError: there is no such worker, or the text is no such fault.
        """
        if worker not in self._plan.workers:
            raise RequestError(f"worker is {worker}, expected 0 to {max(self._plan.workers)}")
        fault = None if spec in ("", KILL) else _parse(worker, spec)
        self._faults.pop(worker, None)
        if spec == KILL and isinstance(self._backend, Killable):
            self._backend.kill(worker)
        elif spec == KILL:
            self._faults[worker] = None
            self._plan.on_down(worker)
        else:
            if fault is not None:
                self._faults[worker] = fault
            self._recheck(worker)

    def start(self) -> None:
        """See `serving.backends.Backend`."""
        self._backend.start()

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """See `serving.backends.Backend`; sound workers come first."""
        faults = self._faults
        if not faults:
            self._backend.submit(task, workers)
            return
        if sound := [worker for worker in workers if worker not in faults]:
            self._backend.submit(task, sound)
        for worker in workers:
            if worker in faults:
                self._submit_to_faulty(task, worker, faults[worker])

    def execution(self, worker: int) -> Execution | None:
        """Where the runs of a worker happen; None where the backend does not say."""
        return self._backend.execution(worker) if isinstance(self._backend, SaysWhere) else None

    def stop(self) -> None:
        """See `serving.backends.Backend`."""
        self._backend.stop()

    def _submit_to_faulty(self, task: Task, worker: int, fault: Fault | None) -> None:
        if fault is None:
            task.fail(worker, Cause.DEAD)
        elif fault.delay_s:
            line = self._lines.setdefault(worker, _DelayLine(self._backend, worker, self._loop))
            line.take(task, fault)
        else:
            self._backend.submit(_FaultyTask(task, fault), [worker])


class _FaultyTask:
    """A task as one faulty worker sees it: what comes back is made wrong on its way. See `serving.backends.Task`."""

    def __init__(self, task: Task, fault: Fault, begun_s: float | None = None) -> None:
        """Wrap a task.

        Args:
            task: the task.
            fault: what goes wrong.
            begun_s: seconds that the run has taken already; a run that has begun goes on when the answer is there.
        """
        self._task = task
        self._fault = fault
        self._begun_s = begun_s

    @property
    def inputs(self) -> Inputs:
        return self._task.inputs

    @property
    def closed(self) -> bool:
        return self._begun_s is None and self._task.closed

    @property
    def expires(self) -> float | None:
        return self._task.expires

    def next_of(self, workers: Sequence[int]) -> int:
        return self._task.next_of(workers)

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        fault = self._fault
        if random.random() < fault.drop:  # noqa: S311
            self._task.fail(worker, Cause.FAILED)
            return
        if fault.scores == "random":
            scores = np.random.default_rng().random(scores.shape, dtype=np.float32)
        elif fault.scores == "nan":
            scores = np.full_like(scores, np.nan)
        self._task.deliver(worker, scores, seconds + (self._begun_s or 0.0))

    def fail(self, worker: int, cause: Cause) -> None:
        self._task.fail(worker, cause)


class _DelayLine:
    """The tasks of one worker each of whose runs takes longer: one runs, and `HOLDS` more may wait, as at any worker.

    Nothing waits in a thread: the delay of a run passes before the backend is given it.
    """

    def __init__(self, backend: Backend, worker: int, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = backend
        self._worker = worker
        self._loop = loop
        self._waiting: deque[tuple[Task, Fault]] = deque()
        self._running = False

    def take(self, task: Task, fault: Fault) -> None:
        """Run a task after those before it, or fail it where too many wait."""
        self._waiting = deque(entry for entry in self._waiting if not entry[0].closed)
        if len(self._waiting) >= HOLDS:
            task.fail(self._worker, Cause.FULL)
            return
        self._waiting.append((task, fault))
        if not self._running:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            task, fault = self._waiting.popleft()
            if not task.closed:
                self._running = True
                seconds = random.expovariate(1 / fault.delay_s) if fault.exponential else fault.delay_s
                self._loop.call_later(seconds, self._run, task, fault, seconds)
                return
        self._running = False

    def _run(self, task: Task, fault: Fault, seconds: float) -> None:
        self._backend.submit(_FaultyTask(task, fault, seconds), [self._worker])
        self._next()


def _parse(worker: int, spec: str) -> Fault:
    try:
        fault = parse_fault(f"{worker}:{spec}")
    except InputError:
        fault = None
    if fault is None or fault.crash or fault.hang or fault.oom or fault.after is not None or fault.until < float("inf"):
        raise RequestError(f"fault is {spec[:60]!r}, expected {EXPECTED}")
    return fault
