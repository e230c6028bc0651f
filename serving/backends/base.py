"""What a backend must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sensai_serve.bundle import Bundle
from serving.devices import Device
from serving.job import Job


@dataclass(frozen=True)
class Plan:
    """What a backend is to run."""

    bundle: Bundle
    devices: tuple[Device, ...]
    device_of: tuple[int, ...]
    """For each worker, the index of its device."""
    on_change: Callable[[], None]
    """To be called, from any thread, when a worker came up or went down."""


class Backend(Protocol):
    """Runs every worker of one bundle. Constructed with a `Plan`.

    Each worker holds one job running and one waiting. A job that is closed when its turn comes is dropped unrun, and
    gives up its place when a new one is submitted.
    """

    def __init__(self, plan: Plan) -> None: ...

    def start(self) -> None:
        """Load and warm every worker; blocks until they can run. Called once, on a thread of its own.

        Raises:
            SensaiError: a worker cannot start.
        """

    def submit(self, job: Job) -> None:
        """Fan a job out: every worker will `deliver` or `fail` it, or drop it closed. Never blocks, never raises."""

    def live(self) -> Sequence[bool]:
        """For each worker, whether it can answer now."""

    def stop(self) -> None:
        """End every worker and free what it holds; blocks. Jobs still open are failed."""
