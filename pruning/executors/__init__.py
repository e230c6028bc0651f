"""Executors carry out tasks that need nothing of each other, in other processes or on other machines.

A new executor is one new file here with a function ``execute(tasks, slots, on_progress)`` (see `Execute`). It calls
`carry_out` for every task, in whatever process and on whatever machine sees the files that the task's arguments name.
An executor knows nothing of what its tasks do: each task names the function to call, which must be importable there. A
task that was lost with its process may be carried out again; the functions are written so that it then goes on from
what is already on disk.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensai_serve.cpus import usable_cores
from sensai_serve.errors import InputError
from sensai_serve.progress import OnProgress


@dataclass(frozen=True)
class ExecutorTask:
    """One call, described so that any process can make it."""

    name: str
    """The task's name in errors, say ``worker 3``."""
    function: str
    """``package.module:function``, called as ``function(slot, on_progress, **arguments)``."""
    arguments: Mapping[str, Any]
    """Keyword arguments, each of a type that JSON has."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Slot:
    """A place where one task at a time is carried out."""

    device: str
    """Torch's name of the device."""
    threads: int | None
    """CPU threads; None: as many as pay."""
    cores: int | None = None
    """The most CPU threads that may be used where `threads` is None; None: as many as there are cores."""


Execute = Callable[[Sequence[ExecutorTask], Sequence[Slot], OnProgress], None]
"""Carries out all tasks, or raises a SensaiError; leaves no process behind either way."""


def carry_out(task: ExecutorTask, slot: Slot, on_progress: OnProgress) -> None:
    """Call the function that a task names, in this process.

    Args:
        task: what to call.
        slot: where the function computes.
        on_progress: called with the function's progress.

    Raises:
        SensaiError: whatever the function raises.
    """
    module, _, name = task.function.partition(":")
    getattr(importlib.import_module(module), name)(slot, on_progress, **task.arguments)


def make_slots(jobs: int | None, devices: Sequence[str], threads: int | None) -> tuple[Slot, ...]:
    """Slots for `jobs` tasks at a time, spread over devices in turn.

    Args:
        jobs: number of slots; None: one for each device.
        devices: torch's names, one or more.
        threads: CPU threads of each job; None: as many as pay, of an equal part of the cores that this process may use.

    Raises:
        InputError: there are fewer jobs than devices.
    """
    jobs = len(devices) if jobs is None else jobs
    if jobs < len(devices):
        raise InputError(f"jobs is {jobs}, expected at least one for each of the {len(devices)} devices")
    cores = max(1, len(usable_cores()) // jobs) if threads is None and jobs > 1 else None
    return tuple(Slot(devices[i % len(devices)], threads, cores) for i in range(jobs))
