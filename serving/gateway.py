"""One served model: admit a request, fan it out, wait as long as the wait says, answer.

    validate -> admit -> fan out -> collect until decided, out of time -> merge

Two requests at most are with the workers at a time (one running, one waiting, as a worker holds); the others wait here
in the order in which they came, and past `max_in_flight` they are refused at once. There is no batching of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from sensai_serve.bundle import Bundle
from sensai_serve.errors import BundleError, NotReadyError, OverloadedError, RequestError, UncoveredError
from sensai_serve.manifest import Manifest
from sensai_serve.merge import Answer, MergePlan, Wait, parse_wait
from sensai_serve.plugins import find
from serving.backends.base import Backend, Plan
from serving.backends.ort import Session
from serving.devices import Device, default_devices
from serving.job import Cause, Job, Outcome
from serving.placement import Placement, place

OnMissing = Literal["refuse", "degrade", "reference"]
ON_MISSING: tuple[OnMissing, ...] = get_args(OnMissing)
AT_WORKERS = 2
"""Requests that are with the workers at a time: one running, one waiting."""


@dataclass(frozen=True)
class GatewayOptions:
    """How a model is served."""

    devices: tuple[Device, ...] = field(default_factory=default_devices)
    """Where workers are placed."""
    backend: str = "ort"
    """What runs them: a plugin of ``serving.backends``."""
    wait: Wait = "decided"
    """What a request waits for that does not say."""
    deadline_s: float | None = None
    """Time that a request has that does not say, in seconds from admission; None for no limit."""
    max_in_flight: int = 64
    """Requests that are answered or waiting at a time; more are refused."""
    on_missing: OnMissing = "refuse"
    """What happens to a request that a class has no copy left for."""
    max_batch: int = 64
    """Inputs in one request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request, and how it came about."""

    answer: Answer
    worker_seconds: Mapping[int, float]
    """For each worker that arrived in time, how long its subnet took."""
    erasures: Mapping[int, Cause]
    """For each worker that was not waited for, why."""


@dataclass
class Counters:
    """What a model has done since it started. Plain numbers; the metrics page reads them."""

    succeeded: int = 0
    refused: int = 0
    uncovered: int = 0
    decided_early: int = 0
    incomplete: int = 0
    degraded: int = 0
    late: int = 0
    """Copies that came after the answer."""
    erasures: Counter[str] = field(default_factory=Counter)
    """Erased copies by cause."""
    worker_seconds: list[float] = field(default_factory=list)
    """Time inside each worker's subnet, of the copies that came in time."""
    worker_runs: list[int] = field(default_factory=list)
    """Copies of each worker that came in time."""


class Gateway:
    """One bundle, served. `start` before the first `infer`, `stop` after the last; all on one event loop."""

    def __init__(self, bundle: Bundle, options: GatewayOptions, *, version: str = "1") -> None:
        """Place the workers; nothing is loaded yet.

        Raises:
            DeviceError: a device that this machine does not have.
            BundleError: `reference` is to answer for missing classes, and the bundle has none.
        """
        self.manifest: Manifest = bundle.manifest
        self.name = bundle.manifest.name
        self.version = version
        self.options = options
        n_workers = bundle.assignment.n_workers
        self.counters = Counters(worker_seconds=[0.0] * n_workers, worker_runs=[0] * n_workers)
        self.plan = MergePlan(bundle.assignment, bundle.manifest.merge.rule, bundle.manifest.merge.threshold)
        costs = [s.macs for s in bundle.manifest.subnets]
        self.placement: Placement = place(bundle.assignment, len(options.devices), costs)
        if options.on_missing == "reference" and bundle.manifest.reference is None:
            raise BundleError(f"{bundle.path} has no reference network to answer for missing classes")
        self._bundle = bundle
        backend_type = find("serving.backends", options.backend, "Backend")
        self._backend: Backend = backend_type(
            Plan(bundle, options.devices, self.placement.device_of, self._workers_changed)
        )
        self._reference: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._checked = False
        self._stopping = False
        self._covered = False
        self._at_workers = 0
        self._queue: deque[asyncio.Future[bool]] = deque()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        """Every class has a live worker, the golden check has passed, and it is not stopping."""
        return self._checked and self._covered and not self._stopping

    @property
    def in_flight(self) -> int:
        """Requests being answered or waiting."""
        return self._in_flight

    def live(self) -> list[bool]:
        """For each worker, whether it can answer now."""
        return list(self._backend.live())

    async def start(self) -> None:
        """Load, warm and check every worker.

        Raises:
            BundleError: damaged, cannot be run, or its answers to the golden samples are wrong.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._backend.start)
            if self.options.on_missing == "reference":
                self._reference = await asyncio.to_thread(self._open_reference)
            self._look_at_workers()
            await self._check_golden()
        except BaseException:
            await asyncio.to_thread(self._backend.stop)
            raise
        self._checked = True

    async def stop(self, drain_s: float = 10.0) -> None:
        """Refuse new requests, let those in flight finish for at most `drain_s` seconds, end the workers."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_s)
        await asyncio.to_thread(self._backend.stop)

    async def infer(
        self, inputs: npt.NDArray[np.float32], *, wait: str | None = None, timeout_s: float | None = None
    ) -> Reply:
        """Answer one request.

        Args:
            inputs: FP32 [N, *shape], C-contiguous, normalised.
            wait: what to wait for; the server's setting where None.
            timeout_s: seconds from now after which nothing more is waited for; the server's setting where None.

        Raises:
            RequestError: a shape or a wait that does not exist.
            NotReadyError: not started, a class has no live worker and that is refused, or stopping.
            OverloadedError: `max_in_flight` requests are being answered.
            UncoveredError: a class has no copy left, and that is refused.
        """
        options = self.options
        waits = options.wait if wait is None else parse_wait(wait)
        if inputs.shape[1:] != self.manifest.input.shape or not 1 <= len(inputs) <= options.max_batch:
            raise RequestError(
                f"input: shape is {list(inputs.shape)}, expected [N, "
                f"{', '.join(map(str, self.manifest.input.shape))}] with N of 1 to {options.max_batch}"
            )
        if not self._checked or self._stopping:
            raise NotReadyError(f"model {self.name} is {'stopping' if self._stopping else 'not ready'}")
        if self._in_flight >= options.max_in_flight:
            self.counters.refused += 1
            raise OverloadedError(f"model {self.name} has {self._in_flight} requests in flight, the most it takes")
        self._in_flight += 1
        self._idle.clear()
        try:
            outcome = await self._run(inputs, waits, options.deadline_s if timeout_s is None else timeout_s)
            answer = self._finish(outcome) if not outcome.uncovered else await self._uncovered(inputs, outcome)
            self.counters.succeeded += 1
            return Reply(answer, outcome.seconds, outcome.erasures)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def _run(self, inputs: npt.NDArray[np.float32], wait: Wait, timeout_s: float | None) -> Outcome:
        loop = asyncio.get_running_loop()
        expires = None if timeout_s is None else loop.time() + timeout_s
        job = Job(inputs, self.plan.collect(len(inputs), wait), loop, self._late)
        if not await self._acquire(expires):
            job.expire(Cause.DEADLINE)  # it never came to the workers: every copy is an erasure
            return await job.outcome
        timer = None if expires is None else loop.call_at(expires, job.expire, Cause.DEADLINE)
        try:
            self._backend.submit(job)
            return await job.outcome
        finally:
            job.abandon()
            if timer is not None:
                timer.cancel()
            self._release()

    async def _acquire(self, expires: float | None) -> bool:
        """A place at the workers, first come, first served; False where the deadline came before it."""
        if self._at_workers < AT_WORKERS:
            self._at_workers += 1
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._queue.append(turn)
        timer = None if expires is None else loop.call_at(expires, _give_up, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._release()  # the place was handed over in the moment in which nobody wanted it any more
            raise
        finally:
            if turn in self._queue:
                self._queue.remove(turn)
            if timer is not None:
                timer.cancel()

    def _release(self) -> None:
        """Hand the place to the next in line, so that nobody who comes later can take it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._at_workers -= 1

    def _finish(self, outcome: Outcome) -> Answer:
        answer, counters = outcome.answer, self.counters
        counters.decided_early += answer.decided_early
        counters.incomplete += not answer.complete
        if outcome.erasures:
            counters.erasures.update(cause.value for cause in outcome.erasures.values())
        for worker, seconds in outcome.seconds.items():
            counters.worker_seconds[worker] += seconds
            counters.worker_runs[worker] += 1
        return answer

    async def _uncovered(self, inputs: npt.NDArray[np.float32], outcome: Outcome) -> Answer:
        answer = self._finish(outcome)
        if self.options.on_missing == "refuse":
            self.counters.uncovered += 1
            labels = ", ".join(self.manifest.labels[c] for c in outcome.uncovered[:5])
            more = "" if len(outcome.uncovered) <= 5 else f" and {len(outcome.uncovered) - 5} more"
            raise UncoveredError(f"no copy of {labels}{more} is left ({_causes(outcome)})")
        self.counters.degraded += 1
        if self._reference is None:
            return dataclasses.replace(answer, degraded=True)
        scores = await asyncio.to_thread(self._reference.run, inputs)
        order = np.sort(scores, axis=1)
        second = order[:, -2] if scores.shape[1] > 1 else np.zeros(len(scores), np.float32)
        return dataclasses.replace(
            answer,
            scores=scores,
            margin=order[:, -1] - second,
            class_id=scores.argmax(axis=1),
            elected=False,
            complete=False,
            degraded=True,
        )

    def _open_reference(self) -> Session:
        data = self._bundle.reference()
        assert data is not None
        spec, name = self.manifest.input, self.manifest.reference
        return Session(data, self.options.devices[0], spec.name, spec.shape, f"{self._bundle.path}: {name}")

    async def _check_golden(self) -> None:
        golden = await asyncio.to_thread(self._bundle.golden)
        scores, class_id = [], []
        for sample in golden.inputs:
            outcome = await self._run(np.ascontiguousarray(sample[None]), "all", None)
            if outcome.answer.missing:
                raise BundleError(f"{self._bundle.path}: workers {list(outcome.answer.missing)} gave no usable scores")
            scores.append(outcome.answer.scores[0])
            class_id.append(outcome.answer.class_id[0])
        try:
            golden.check(np.array(scores), np.array(class_id))
        except BundleError as error:
            raise BundleError(f"{self._bundle.path}: {error}") from None

    def _late(self, worker: int, seconds: float) -> None:
        self.counters.late += 1

    def _workers_changed(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._look_at_workers)

    def _look_at_workers(self) -> None:
        live = self._backend.live()
        self._covered = all(any(live[w] for w in workers) for workers in self.plan.assignment.workers_of)


def _give_up(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)


def _causes(outcome: Outcome) -> str:
    counted = Counter(cause.value for cause in outcome.erasures.values())
    return ", ".join(f"{n} worker{'s' * (n > 1)} {cause}" for cause, n in counted.most_common())
