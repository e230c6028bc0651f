"""Where subnets run: the contract between what answers requests and what runs workers.

A backend is a file or a folder here with a class ``Backend``. It is constructed with a `BackendPlan` and takes `Task`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sensai_serve.bundles import Bundle
from sensai_serve.merge import Wait
from sensai_serve.tensors import Inputs
from serving.runtime.devices import ONE_THREAD, Device, Threads
from serving.runtime.faults import Fault

HOLDS = 2
"""Open tasks that one worker has at most: one running, one waiting."""
Processes = Literal["worker", "device"]
"""What has an operating system process of its own, in a backend that starts any."""
Scores = npt.NDArray[np.float32]
"""One worker's scores FP32 [N, k], k classes in the order of its subnet."""


class Cause(StrEnum):
    """Why a worker's copies are not waited for."""

    DEAD = "dead"
    """The worker is not running."""
    EJECTED = "ejected"
    """The worker is a known straggler, or its runs fail."""
    QUARANTINED = "quarantined"
    """The worker is known to give wrong scores."""
    FULL = "full"
    """The worker has as many open tasks as it may have."""
    FAILED = "failed"
    """The run failed."""
    INVALID = "invalid"
    """The scores are NaN, infinite, out of [0, 1], or of another shape."""
    DEADLINE = "deadline"
    """The request's time was up."""
    PATIENCE = "patience"
    """The worker took much longer than healthy ones do."""


class Execution(StrEnum):
    """Where the runs of a worker happen."""

    FUSED = "fused"
    """On the event loop's thread, with other workers in one network."""
    INLINE = "inline"
    """On the event loop's thread."""
    THREAD = "thread"
    """On a thread of the server."""
    PROCESS = "process"
    """In another process of this machine."""
    REMOTE = "remote"
    """On another server."""

    @property
    def in_words(self) -> str:
        """For the log: what workers do that are run so."""
        return _IN_WORDS[self]


_IN_WORDS = {
    Execution.FUSED: "run on the event loop's thread, fused into one network",
    Execution.INLINE: "run on the event loop's thread, one by one",
    Execution.THREAD: "run on threads",
    Execution.PROCESS: "run in other processes",
    Execution.REMOTE: "run on other servers",
}


class Task(Protocol):
    """Something for workers to run, and who is told of the scores. Its methods may be called on any thread."""

    @property
    def inputs(self) -> Inputs:
        """N inputs, read by all workers, written by none."""

    @property
    def closed(self) -> bool:
        """Whether the answer is no longer wanted. Workers look before they start, and drop a closed task."""

    @property
    def expires(self) -> float | None:
        """When it closes by itself, on the event loop's clock in seconds; None if it does not."""

    def next_of(self, workers: Sequence[int]) -> int:
        """Choose among workers that would run the task one after the other, at least one: who is to run it next."""

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """Take a worker's scores FP32 [N, k], and the seconds that its subnet took."""

    def fail(self, worker: int, cause: Cause) -> None:
        """Learn that a worker's scores will not come."""


@dataclass(frozen=True)
class BackendPlan:
    """Which workers a backend runs, where, and who is told when one comes or goes. All ids are the bundle's own."""

    bundle: Bundle
    workers: tuple[int, ...]
    """Ids of the workers that this backend runs, each once."""
    devices: tuple[Device, ...]
    device_of: Mapping[int, int]
    """The index in `devices` of each of these workers."""
    max_batch: int
    """The most inputs in one task."""
    faults: tuple[Fault, ...]
    """What is to go wrong on purpose."""
    on_up: Callable[[int], None]
    """Called with a worker that is loaded and can run; safe on any thread."""
    on_down: Callable[[int], None]
    """Called with a worker that is gone; safe on any thread."""
    threads: Threads = ONE_THREAD
    """Intra-op threads per CPU subnet; above 1 they are not pinned to a core."""
    inline_s: float = 0.0
    """The longest time that one request's subnets may keep the event loop's own thread, in seconds."""
    processes: Processes = "worker"
    """What has an operating system process of its own, in a backend that starts any."""
    require_all: bool = False
    """Whether every worker on another server must be there at the start, also where its classes have others."""
    shares: Mapping[int, int] = field(default_factory=dict)
    """Bytes of its card's memory that a worker's session may take; workers without a bound are left out."""
    fuses: bool = True
    """Whether workers may be opened a second time, as parts of one network for several."""
    wait: Wait = "decided"
    """What most requests wait for: how many of the workers they run, where one runs after the other, goes by it."""

    def device(self, worker: int) -> Device:
        """The device that a worker runs on, with no more memory than is its share."""
        return self.devices[self.device_of[worker]].bounded(self.shares.get(worker))

    def only(self, workers: Sequence[int]) -> BackendPlan:
        """The same plan for some of its workers, with no devices but theirs."""
        kept = sorted({self.device_of[worker] for worker in workers})
        return replace(
            self,
            workers=tuple(workers),
            devices=tuple(self.devices[index] for index in kept),
            device_of={worker: kept.index(self.device_of[worker]) for worker in workers},
        )


class Backend(Protocol):
    """Runs workers of one bundle. Constructed with a `BackendPlan`, on the event loop's thread.

    Each worker holds `HOLDS` open tasks at most. A task that is closed when its turn comes is dropped unrun, and takes
    no place before; so a straggler's backlog cannot grow.
    """

    def __init__(self, plan: BackendPlan) -> None: ...

    def start(self) -> None:
        """Load and warm every worker of the plan and report each as up; blocks. Called once, off the event loop.

        A worker on another server that is not there yet is reported as down where every class has other workers, and as
        up once it is there.

        Raises:
            SensaiError: a worker cannot start.
        """

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out: each of these workers will `deliver` or `fail` it, or drop it closed. Never blocks or raises.

        Called on the event loop's thread only.
        """

    def stop(self) -> None:
        """End every worker and free what it holds; blocks, off the event loop's thread. Open tasks are failed."""


@runtime_checkable
class Killable(Protocol):
    """A backend that can end what runs a worker at once, as something outside the server might."""

    def kill(self, worker: int) -> None:
        """End what runs this worker, and whatever else runs there. It is started again as after any death.

        Called on the event loop's thread only.
        """


@runtime_checkable
class RunsAtOnce(Protocol):
    """A backend that can run every worker of a plan on the calling thread."""

    def run_at_once(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """Run every worker of the plan on one input, without a `Task`.

        Called on the event loop's thread only.

        Args:
            inputs: FP32 [1, *shape].

        Returns:
            FP32 [scores]: those of all workers side by side, in the order of their ids, until the next call; None where
            some of them run elsewhere, or a run fails: `submit` then finds out which.
        """


@runtime_checkable
class SaysWhere(Protocol):
    """A backend that says where its workers run."""

    def execution(self, worker: int) -> Execution | None:
        """Where the runs of a worker happen now; None where it is not known. Called on the event loop's thread."""
