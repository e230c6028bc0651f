"""``ray``: every network is a task of a Ray cluster, with the cores or the share of a card that its slot says.

The run directory and the data must be where every machine of the cluster sees them at the same path. The cluster is the
one that RAY_ADDRESS names, or one on this machine for as long as the run takes. How many networks are made at a time is
for Ray to say: as many as its resources allow. A task that is lost with its process or its machine is given out again
and goes on from its snapshot in the run directory.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pruning.executors import OnProgress, Slot, Task
from pruning.executors.local import report
from sensai_serve import errors
from sensai_serve.errors import InputError, SensaiError, WorkError

RETRIES = 10
"""Times that a task which was lost is given out again."""
LOOK_S = 0.2
"""How often the driver asks what has happened."""
SAY_S = 0.5
"""How often a task says how far it is, at most."""
CONNECT_S = 5.0
"""How long the cluster's address may take to answer."""
_ADDRESS = re.compile(r"(?:ray://)?(.+):(\d{1,5})")
_said: Any = None  # where this process, one of Ray's, says how far it is


def execute(tasks: Sequence[Task], slots: Sequence[Slot], on_progress: OnProgress) -> None:
    """Do all tasks, as many at a time as the cluster has room for.

    Args:
        tasks: what to do.
        slots: what one task needs: the threads of its slot, and of a card the part that its slots leave each other.
        on_progress: hears of it, from this process.

    Raises:
        InputError: no cluster at RAY_ADDRESS.
        SensaiError: what a task raised; the others are cancelled.
        WorkError: a task was lost too often.
    """
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        _connect(ray)
    try:
        _run(ray, tasks, slots, on_progress)
    finally:
        if started_here:
            ray.shutdown()


def resources(slots: Sequence[Slot], number: int) -> dict[str, float]:
    """What Ray is to keep for one task on slot `number`: cores, and a part of a card where others share it."""
    slot = slots[number]
    found: dict[str, float] = {"num_cpus": slot.threads or slot.cores or 1}
    if slot.device.startswith("cuda"):
        found["num_gpus"] = 1 / sum(other.device == slot.device for other in slots)
    return found


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if not address:
        # On this machine a user's own modules are found where this process finds them; a cluster has its own.
        path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path)
        options |= {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "include_dashboard": False, "address": "local"}
    try:
        if address and (there := _ADDRESS.fullmatch(address)):  # Ray itself would try for minutes
            socket.create_connection((there[1].strip("[]"), int(there[2])), CONNECT_S).close()
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no Ray cluster at {address or 'this machine'} ({reason}), expected --address HOST:PORT"
        ) from None


def _run(ray: Any, tasks: Sequence[Task], slots: Sequence[Slot], on_progress: OnProgress) -> None:
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Board).remote()
    perform = ray.remote(max_retries=RETRIES)(_perform)
    waiting = {}
    for number, task in enumerate(tasks):
        at = number % len(slots)
        needs = resources(slots, at)
        # Ray shows a task no card but its own, which is then the first.
        slot = replace(slots[at], device="cuda:0" if "num_gpus" in needs else slots[at].device)
        slot = replace(slot, cores=int(needs["num_cpus"]))
        waiting[perform.options(**needs).remote(task, slot, board)] = task
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=LOOK_S)
            for stage, (at, total) in ray.get(board.take.remote()).items():
                on_progress(stage, at, total)
            for reference in done:
                _settle(ray, reference, waiting.pop(reference))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _settle(ray: Any, reference: Any, task: Task) -> None:
    try:
        failure: dict[str, str] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise WorkError(f"{task}: {' '.join(str(error.cause).split())[-300:]}") from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise WorkError(
            f"{task} was lost {RETRIES + 1} times ({reason}), expected it to finish; what is done is "
            "kept, and running again goes on"
        ) from None
    if failure:
        raise getattr(errors, failure["kind"])(failure["error"])


class _Board:
    """How far every stage is: tasks write, the driver reads. An actor of Ray."""

    def __init__(self) -> None:
        self._stages: dict[str, tuple[int, int]] = {}

    def say(self, stage: str, done: int, total: int) -> None:
        self._stages[stage] = done, total

    def take(self) -> dict[str, tuple[int, int]]:
        news, self._stages = self._stages, {}
        return news


class _Teller:
    """Says how far the stages of this process are, now and then."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self._last = 0.0
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage or done >= total or now - self._last >= SAY_S:
            self._stage, self._last = stage, now
            self.board.say.remote(stage, done, total)


def _perform(task: Task, slot: Slot, board: Any) -> dict[str, str]:
    """In a process of Ray's: do the task; what went wrong, nothing where nothing did."""
    global _said  # noqa: PLW0603  the same teller for every task of this process, so that data is loaded once
    from pruning.pipeline.work import perform

    if _said is None or _said.board != board:
        _said = _Teller(board)
    try:
        perform(task, slot, _said)
    except SensaiError as error:
        return report(error)
    return {}
