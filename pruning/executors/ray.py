"""``ray``: every task is a task of a Ray cluster, with the cores or the share of a GPU that its slot says.

The run directory and the data must lie at the same path on every machine of the cluster. The cluster is the one that
RAY_ADDRESS names, or one on this machine for as long as the run takes. Ray decides how many tasks run at a time: as
many as its resources allow. A task that is lost with its process or its machine is carried out again and goes on from
its snapshot in the run directory.
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

from pruning.executors import ExecutorTask, Slot, carry_out
from pruning.executors.local import describe
from sensai_serve import errors, user_code
from sensai_serve.errors import InputError, PluginError, SensaiError, WorkError
from sensai_serve.progress import OnProgress

RETRIES = 10
"""The number of times that a lost task is carried out again."""
POLL_S = 0.2
"""Seconds between two looks of the driver at the tasks."""
REPORT_S = 0.5
"""Seconds between two progress reports of a task, at least."""
CONNECT_S = 5.0
"""Seconds that the cluster's address may take to answer."""
_ADDRESS = re.compile(r"(?:ray://)?(.+):(\d{1,5})")
_reporter: Any = None  # reports the progress of this process, one of Ray's


def execute(tasks: Sequence[ExecutorTask], slots: Sequence[Slot], on_progress: OnProgress) -> None:
    """Carry out all tasks, as many at a time as the cluster has room for.

    Args:
        tasks: what to carry out.
        slots: what one task needs: the threads of its slot, and its share of a GPU that several slots name.
        on_progress: called with the progress of every task, in this process.

    Raises:
        InputError: there is no cluster at RAY_ADDRESS.
        SensaiError: a task raised it; the other tasks are cancelled.
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
    """The resources that Ray reserves for one task on slot `number`: CPU cores, and a share of a GPU."""
    slot = slots[number]
    found: dict[str, float] = {"num_cpus": slot.threads or slot.cores or 1}
    if slot.device.startswith("cuda"):
        found["num_gpus"] = 1 / sum(other.device == slot.device for other in slots)
    return found


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if not address:
        # A local cluster finds the user's own modules where this process does; a remote one has its own.
        path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path)
        options |= {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "include_dashboard": False, "address": "local"}
    try:
        if address and (there := _ADDRESS.fullmatch(address)):  # Ray itself would retry for minutes
            socket.create_connection((there[1].strip("[]"), int(there[2])), CONNECT_S).close()
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no Ray cluster at {address or 'this machine'} ({reason}), expected --address HOST:PORT"
        ) from None


def _run(ray: Any, tasks: Sequence[ExecutorTask], slots: Sequence[Slot], on_progress: OnProgress) -> None:
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_ProgressBoard).remote()
    perform = ray.remote(max_retries=RETRIES)(_perform)
    waiting = {}
    for number, task in enumerate(tasks):
        at = number % len(slots)
        needs = resources(slots, at)
        # Ray shows a task only its own GPU, which is then the first.
        slot = replace(slots[at], device="cuda:0" if "num_gpus" in needs else slots[at].device)
        slot = replace(slot, cores=int(needs["num_cpus"]))
        waiting[perform.options(**needs).remote(task, slot, board)] = task
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=POLL_S)
            for stage, (at, total) in ray.get(board.take.remote()).items():
                on_progress(stage, at, total)
            for reference in done:
                _settle(ray, reference, waiting.pop(reference))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _settle(ray: Any, reference: Any, task: ExecutorTask) -> None:
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


class _ProgressBoard:
    """Ray actor that holds the progress of every stage: tasks write it, the driver reads it."""

    def __init__(self) -> None:
        self._stages: dict[str, tuple[int, int]] = {}

    def say(self, stage: str, done: int, total: int) -> None:
        self._stages[stage] = done, total

    def take(self) -> dict[str, tuple[int, int]]:
        news, self._stages = self._stages, {}
        return news


class _Reporter:
    """Reports the progress of this process's stages to the board, at most every `REPORT_S` seconds."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self._last = 0.0
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage or done >= total or now - self._last >= REPORT_S:
            self._stage, self._last = stage, now
            self.board.say.remote(stage, done, total)


def _perform(task: ExecutorTask, slot: Slot, board: Any) -> dict[str, str]:
    """Carry out a task in one of Ray's processes; returns the error as a message, empty where there was none."""
    global _reporter  # noqa: PLW0603  one for all tasks of this process: they share what is cached by it
    if _reporter is None or _reporter.board != board:
        _reporter = _Reporter(board)
    try:
        carry_out(task, slot, _reporter)
    except SensaiError as error:
        return describe(error)
    except Exception as error:
        if not (theirs := user_code.describe(error)):
            raise
        return describe(PluginError(theirs))
    return {}
