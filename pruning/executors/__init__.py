"""Executors: where networks are made that need nothing of each other, the workers' of a run above all.

A new executor is one new file here with a function ``execute(tasks, slots, on_progress)`` that has every task done by
`pruning.pipeline.work.perform`, in whatever process and on whatever machine sees the run directory and the data. A
task that was lost may be given out again: it goes on from its snapshot, and what is finished is not made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sensai_serve.errors import InputError

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much it is in all."""


@dataclass(frozen=True)
class Task:
    """Make one network of a run directory: all that another process must be told."""

    run: str
    """Path of the run directory, from the root."""
    worker: int | None
    """Whose; None: a compact one for all classes that workers are made of."""
    data: str
    """Source of the run's data, where it lies now."""
    recovery: int = 0
    """Which of those."""
    label: str = ""
    """What the names of its stages begin with, where several runs are worked on."""

    def __str__(self) -> str:
        what = f"recovery {self.recovery}" if self.worker is None else f"worker {self.worker}"
        return f"{self.label} {what}".lstrip()


@dataclass(frozen=True)
class Slot:
    """Where one network at a time is made."""

    device: str
    """torch's name of it."""
    threads: int | None
    """Of the CPU; None: as many as pay."""
    cores: int | None = None
    """That pay at most, where nobody says how many threads; None: all that there are."""


Execute = Callable[[Sequence[Task], Sequence[Slot], OnProgress], None]
"""Does all tasks, or raises a SensaiError; leaves no process behind either way."""


def deal(jobs: int | None, devices: Sequence[str], threads: int | None) -> tuple[Slot, ...]:
    """The slots for `jobs` networks at a time, dealt over devices in turn.

    Args:
        jobs: None: one for each device.
        devices: torch's names, one or more.
        threads: of the CPU for each job; None: as many as pay, of an equal part of the cores that this process may use.

    Raises:
        InputError: there are fewer jobs than devices.
    """
    jobs = len(devices) if jobs is None else jobs
    if jobs < len(devices):
        raise InputError(f"jobs is {jobs}, expected at least one for each of the {len(devices)} devices")
    cores = max(1, len(os.sched_getaffinity(0)) // jobs) if threads is None and jobs > 1 else None
    return tuple(Slot(devices[i % len(devices)], threads, cores) for i in range(jobs))
