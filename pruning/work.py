"""Make one network of a run directory, in whatever process: what executors carry out."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

from pruning.answers import FOLDER, open_answers
from pruning.checkpoint import RECOVERED, REFERENCE, Run
from pruning.choose import Base
from pruning.executors import OnProgress, Slot, Task
from pruning.limits import enough_memory
from pruning.network import make_network
from pruning.plan import Plan, plan_of
from pruning.retrain import require_device
from pruning.snapshot import Snapshot
from pruning.stages import Stage, specialisation


def perform(task: Task, slot: Slot, on_progress: OnProgress) -> None:
    """Make the worker's network that `task` names, unless the run directory holds it already.

    An unfinished one goes on from its snapshot, so a task that was lost with its process may be given to another.

    Args:
        task: which worker of which run.
        slot: where to compute.
        on_progress: hears of it. With the same function, run and slot the data and the reference are loaded once.

    Raises:
        SensaiError: the network cannot be made.
    """
    plan, run, base = _open(task.run, task.data, slot, on_progress)
    make(run, run.folder(task.worker), base, specialisation(plan, task.worker))


def make(run: Run, name: str, base: Base, stage: Stage) -> None:
    """Make the network of that name, unless the run holds it already.

    Raises:
        ModelError: the cut cannot be made.
        WorkError: memory ran out, or the disk is full.
    """
    if run.has(name):
        return
    snapshot = Snapshot(run.path / f".{name.replace('/', '-')}.training", {"name": name})  # the run knows the recipe
    with enough_memory(stage.name, base.plan.device):
        run.save(name, *make_network(base, stage, snapshot))
    snapshot.clear()


def base_at(plan: Plan, run: Run, name: str, on_progress: OnProgress) -> Base:
    """What further networks are cut from: a finished network of the run, for all classes.

    Read back even where it was just made: a resumed run must go on from the same numbers.
    """
    answers = open_answers(plan, run.path / FOLDER)
    if name == REFERENCE:
        return Base(plan, plan.reference, {}, on_progress=on_progress, answers=answers)
    made = run.network(name)
    return Base(plan, run.load(name).network.to(plan.device), made.cut, made.removed, on_progress, answers)


def base_of_workers(plan: Plan, run: Run, on_progress: OnProgress) -> Base:
    """The recovered network where the run has one, else the reference."""
    return base_at(plan, run, RECOVERED if run.has(RECOVERED) else REFERENCE, on_progress)


@lru_cache(maxsize=1)
def _open(path: str, data: str, slot: Slot, on_progress: OnProgress) -> tuple[Plan, Run, Base]:
    require_device(slot.device)
    run = Run.open(Path(path))
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, data=data))
    plan = plan_of(run, device=slot.device, threads=slot.threads)
    return plan, run, base_of_workers(plan, run, on_progress)
