"""Make one network of a run directory, in whatever process: what executors carry out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch

from pruning.executors import OnProgress, Slot, Task
from pruning.limits import enough_memory
from pruning.pipeline.choose import Base, reference_base
from pruning.pipeline.plan import Plan, plan_of
from pruning.pipeline.stages import Stage, origin, recovered, recovery_images, rounds, specialisation
from pruning.pipeline.subnet import make_network
from pruning.pipeline.teacher import FOLDER, Answers, open_answers
from pruning.run import REFERENCE, Run
from pruning.training.loop import require_device
from pruning.training.snapshot import Snapshot


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
    bench = _open(task.run, task.data, task.label, slot, on_progress)
    if task.worker is None:
        bench.recover(task.recovery)
    else:
        bench.specialise(task.worker)


@dataclass(frozen=True)
class Workbench:
    """Makes networks of one run. What they are cut out of, profiles of it and its answers, is loaded or taken once."""

    plan: Plan
    run: Run
    on_progress: OnProgress
    reference: Base
    _recovered: dict[str, Base] = field(default_factory=dict)

    @cached_property
    def answers(self) -> Answers | None:
        """The reference's, to what networks are trained on; None: it is asked in every step."""
        return open_answers(self.plan, self.run.path / FOLDER)

    def recover(self, number: int) -> None:
        """Make the compact network of that number, in as many steps as the recipe says.

        Raises:
            ModelError: the cut cannot be made.
            WorkError: memory ran out, or the disk is full.
        """
        before = REFERENCE
        for name, stage in rounds(self.plan, number):
            self._make(name, before, stage)
            before = name

    def specialise(self, worker: int) -> None:
        """Make a worker's network: of a recovered one where the recipe asks for them, else of the reference.

        Raises:
            ModelError: the cut cannot be made.
            WorkError: memory ran out, or the disk is full.
        """
        before = recovered(origin(self.plan, worker)) if recovery_images(self.plan) else REFERENCE
        self._make(self.run.folder(worker), before, specialisation(self.plan, worker))

    def _make(self, name: str, before: str, stage: Stage) -> None:
        unfinished = self.run.path / f".{name.replace('/', '-')}.training"
        snapshot = Snapshot(unfinished, {"name": name})  # the run knows the recipe
        if not self.run.has(name):
            with enough_memory(stage.name, self.plan.device):
                self.run.save(name, *make_network(self._base(before), self.answers, stage, snapshot))
        snapshot.clear()  # also where the end came just after the network was written

    def _base(self, name: str) -> Base:
        """Read back even where it was just made: a resumed run must go on from the same numbers."""
        if name == REFERENCE:
            return self.reference
        if name not in self._recovered:
            made, network = self.run.network(name), self.run.load(name).network.to(self.plan.device)
            base = Base(self.plan, network, made.cut, made.removed, self.on_progress, self.reference)
            self._recovered[name] = base
        return self._recovered[name]


@lru_cache(maxsize=1)
def _open(path: str, data: str, label: str, slot: Slot, on_progress: OnProgress) -> Workbench:
    require_device(slot.device)
    if slot.cores is not None:
        torch.set_num_threads(slot.cores)
    run = Run.open(Path(path))
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, data=data))
    plan = plan_of(run, device=slot.device, threads=slot.threads)
    say = partial(_labelled, on_progress, label) if label else on_progress
    return Workbench(plan, run, say, reference_base(plan, say))


def _labelled(on_progress: OnProgress, label: str, stage: str, done: int, total: int) -> None:
    on_progress(f"{label} {stage}", done, total)
