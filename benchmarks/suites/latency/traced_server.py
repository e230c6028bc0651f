"""Our server with a stopwatch: the same transports, gateway and workers, which note when each step of a request ends.

It wraps the data plane, which every transport calls, and the backend, which the gateway gives its tasks to.
`benchmarks.suites.latency.breakdown` runs it as a process, for one client that sends one request at a time. All times
are of `time.perf_counter`, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import uvloop

from sensai_serve.bundles import Bundle, atomic_file
from sensai_serve.plugins import find
from serving.backends import Backend, BackendPlan, Cause, Scores, Task
from serving.dataplane import DataPlane
from serving.engine.gateway import Gateway
from serving.engine.pending import MaybePending
from serving.engine.reply import Reply
from serving.engine.repository import Repository
from serving.server import listening
from serving.settings import load_settings
from serving.v2 import InferRequest

_T = TypeVar("_T")
CODE = "from benchmarks.suites.latency.traced_server import main; main()"
"""Run as ``python -c CODE CONFIG``, not as a module: the backend below must be of the same module as `main`."""


@dataclass(frozen=True)
class TracedServerConfig:
    """The bundle, addresses and backend that the traced server runs with."""

    bundle: str
    http: str
    """HOST:PORT."""
    grpc: str
    """HOST:PORT."""
    backend: str
    """Backend that runs the workers."""
    devices: Sequence[str]
    marks: str
    """The file that the marks are written to in the end: a JSON list of `StepTimes`."""


@dataclass
class StepTimes:
    """Times on the clock of `time.perf_counter` at which the steps of one request began or ended."""

    asked: float
    """The data plane has the request's bytes."""
    decoded: float = 0.0
    submitted: float = 0.0
    """The gateway gives the task to the workers."""
    first_started: float = float("inf")
    """The first worker begins its subnet."""
    started: float = 0.0
    """The worker that decided the vote begins its subnet."""
    ran: float = 0.0
    """The deciding worker ends its subnet."""
    merged: float = 0.0
    """The vote is decided and the answer is made."""
    answered: float = 0.0
    """The event loop has the answer."""
    encoded: float = 0.0


@dataclass
class _TraceState:
    """The step times of the request in progress, and of those that are over."""

    backend: str = "ort"
    current: StepTimes | None = None
    all: list[StepTimes] = field(default_factory=list)


_recorder = _TraceState()


class _TracedDataPlane(DataPlane):
    def begin(
        self, gateway: Gateway, decode: Callable[[], InferRequest], encode: Callable[[InferRequest, Reply], _T]
    ) -> MaybePending[_T]:
        marks = _recorder.current = StepTimes(perf_counter())

        def timed_decode() -> InferRequest:
            request = decode()
            marks.decoded = perf_counter()
            return request

        def timed_encode(request: InferRequest, reply: Reply) -> _T:
            marks.answered = perf_counter()
            encoded = encode(request, reply)
            marks.encoded = perf_counter()
            return encoded

        try:
            return super().begin(gateway, timed_decode, timed_encode)
        finally:
            _recorder.current = None  # the task is submitted by now
            _recorder.all.append(marks)


class TracingBackend:
    """The configured backend, with tasks that note when scores arrive. See `serving.backends.Backend`."""

    def __init__(self, plan: BackendPlan) -> None:
        self._inner: Backend = find("serving.backends", _recorder.backend, "Backend")(plan)

    def start(self) -> None:
        """See `serving.backends.Backend`."""
        self._inner.start()

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """See `serving.backends.Backend`."""
        marks = _recorder.current
        if marks is None:  # golden samples and probes belong to no request
            self._inner.submit(task, workers)
            return
        marks.submitted = perf_counter()
        self._inner.submit(_TracedTask(task, marks), workers)

    def stop(self) -> None:
        """See `serving.backends.Backend`."""
        self._inner.stop()


class _TracedTask:
    """A task that notes when its scores come."""

    def __init__(self, task: Task, marks: StepTimes) -> None:
        self._task = task
        self._marks = marks
        self.inputs = task.inputs
        self.expires = task.expires

    @property
    def closed(self) -> bool:
        return self._task.closed

    def next_of(self, workers: Sequence[int]) -> int:
        return self._task.next_of(workers)

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        ran, was_open = perf_counter(), not self._task.closed
        self._task.deliver(worker, scores, seconds)
        if was_open:
            marks = self._marks
            marks.first_started = min(marks.first_started, ran - seconds)
            if self._task.closed:
                marks.started, marks.ran, marks.merged = ran - seconds, ran, perf_counter()

    def fail(self, worker: int, cause: Cause) -> None:
        self._task.fail(worker, cause)


async def _serve(config: TracedServerConfig, stop: asyncio.Event) -> None:
    settings = load_settings(
        http=config.http,
        grpc=config.grpc,
        inference={"devices": list(config.devices) or None, "backend": f"{__name__}:TracingBackend"},
    )
    repository = Repository([Bundle.open(config.bundle)], settings.gateway_options())
    async with listening(_TracedDataPlane(repository, settings), settings):
        await repository.start()
        await stop.wait()
    await repository.stop(drain_s=0)


def main() -> None:
    """Serve until SIGTERM, then write the marks."""
    raw: Mapping[str, Any] = json.loads(sys.argv[1])
    config = TracedServerConfig(**raw)
    _recorder.backend = config.backend

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await _serve(config, stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    with atomic_file(Path(config.marks)) as temporary:
        temporary.write_text(json.dumps([asdict(marks) for marks in _recorder.all]))
