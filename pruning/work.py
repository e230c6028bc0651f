"""Make one network of a run directory, in whatever process: what executors carry out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from pruning.answers import FOLDER, open_answers
from pruning.checkpoint import REFERENCE, Run
from pruning.choose import Base
from pruning.executors import OnProgress, Slot, Task
from pruning.limits import enough_memory
from pruning.network import make_network
from pruning.plan import Plan, plan_of
from pruning.retrain import require_device
from pruning.snapshot import Snapshot
from pruning.stages import Stage, origin, recovered, recovery_images, rounds, specialisation


def perform(task: Task, slot: Slot, on_progress: OnProgress) -> None:
    """Make the network that `task` names, unless the run directory holds it already.

    An unfinished one goes on from its snapshot, so a task that was lost with its process may be given to another.

    Args:
        task: which of which run.
        slot: where to compute.
        on_progress: hears of it. With the same function, run and slot the data and the reference are loaded once.

    Raises:
        SensaiError: the network cannot be made.
    """
    bases = _open(task.run, task.data, task.label, slot, on_progress)
    if task.worker is None:
        recover(bases.plan, bases.run, task.recovery, bases.on_progress)
    else:
        specialise(bases, task.worker)


def recover(plan: Plan, run: Run, number: int, on_progress: OnProgress) -> None:
    """Make the compact network of that number, in as many steps as the recipe says.

    Raises:
        ModelError: the cut cannot be made.
        WorkError: memory ran out, or the disk is full.
    """
    before = REFERENCE
    for name, stage in rounds(plan, number):
        if not run.has(name):
            make(run, name, base_at(plan, run, before, on_progress), stage)
        before = name


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


@dataclass(frozen=True)
class Bases:
    """What a run's workers are made of: the reference, or compact networks recovered from it, each loaded once."""

    plan: Plan
    run: Run
    on_progress: OnProgress
    _loaded: dict[str, Base] = field(default_factory=dict)

    def of(self, worker: int) -> Base:
        """What the worker's network is made of, which the run holds."""
        name = recovered(origin(self.plan, worker)) if recovery_images(self.plan) else REFERENCE
        if name not in self._loaded:
            self._loaded[name] = base_at(self.plan, self.run, name, self.on_progress)
        return self._loaded[name]


def specialise(bases: Bases, worker: int) -> None:
    """Make a worker's network.

    Raises:
        ModelError: the cut cannot be made.
        WorkError: memory ran out, or the disk is full.
    """
    make(bases.run, bases.run.folder(worker), bases.of(worker), specialisation(bases.plan, worker))


@lru_cache(maxsize=1)
def _open(path: str, data: str, label: str, slot: Slot, on_progress: OnProgress) -> Bases:
    require_device(slot.device)
    run = Run.open(Path(path))
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, data=data))
    plan = plan_of(run, device=slot.device, threads=slot.threads)
    return Bases(plan, run, partial(_labelled, on_progress, label) if label else on_progress)


def _labelled(on_progress: OnProgress, label: str, stage: str, done: int, total: int) -> None:
    on_progress(f"{label} {stage}", done, total)
