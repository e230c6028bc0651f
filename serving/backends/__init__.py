"""Where subnets run. A backend is a file here with a class ``Backend``; this is what it must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sensai_serve.bundle import Bundle
from serving.engine.fanout import Task
from serving.runtime.devices import ONE_THREAD, Device, Threads
from serving.runtime.faults import Fault

Processes = Literal["worker", "device"]
"""What has an operating system process of its own, where a backend starts any."""


@dataclass(frozen=True)
class Plan:
    """What a backend is to run, and whom it tells of workers that come and go. Both calls are safe from any thread."""

    bundle: Bundle
    devices: tuple[Device, ...]
    device_of: tuple[int, ...]
    """For each worker, the index of its device."""
    max_batch: int
    """The most inputs in one task."""
    faults: tuple[Fault, ...]
    on_up: Callable[[int], None]
    """A worker is loaded and can run."""
    on_down: Callable[[int], None]
    """A worker is gone."""
    threads: Threads = ONE_THREAD
    """Of ONNX Runtime for each subnet on the CPU; more than one are not pinned to a core."""
    inline_s: float = 0.0
    """The longest time that a request's subnets may keep the event loop's own thread, in seconds."""
    processes: Processes = "worker"

    def device(self, worker: int) -> Device:
        """Where a worker runs."""
        return self.devices[self.device_of[worker]]


class Backend(Protocol):
    """Runs every worker of one bundle. Constructed with a `Plan`, on the event loop's thread.

    Each worker holds two open tasks at most: one running, one waiting. A task that is closed when its turn comes is
    dropped unrun, and takes no place before; so a straggler's backlog cannot grow.
    """

    def __init__(self, plan: Plan) -> None: ...

    def start(self) -> None:
        """Load and warm every worker and say that each is up; blocks. Called once, off the event loop's thread.

        Raises:
            SensaiError: a worker cannot start.
        """

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out: each of these workers will `deliver` or `fail` it, or drop it closed. Never blocks or raises.

        Called from the event loop's thread only.
        """

    def stop(self) -> None:
        """End every worker and free what it holds; blocks, off the event loop's thread. Open tasks are failed."""
