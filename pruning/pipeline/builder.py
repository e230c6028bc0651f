"""Builds the networks of a run directory, one after the other; executors call `build_network` in other processes."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch

from pruning.data import absolute
from pruning.executors import ExecutorTask, Slot
from pruning.limits import enough_memory
from pruning.pipeline import joint
from pruning.pipeline.subnet import make_network
from pruning.pipeline.teacher import FOLDER, TeacherLogits, open_teacher_logits
from pruning.planning.plan import RunPlan, plan_of
from pruning.planning.stages import Stage, origin, recovered, recovery_images, rounds, specialisation
from pruning.run import REFERENCE, Run
from pruning.selection.source import SourceNetwork, reference_source
from pruning.training.exchange import Exchange, exchange_between
from pruning.training.loop import require_device
from pruning.training.snapshot import Snapshot
from sensai_serve.progress import OnProgress, silent


def network_task(run: Run, data: str, *, worker: int | None = None, recovery: int = 0, label: str = "") -> ExecutorTask:
    """The task of building one network of a run directory.

    Args:
        run: the run; every process that carries out the task must see its directory and the data.
        data: source of the run's data, where it lies now.
        worker: the worker whose network is built; None: a compact network for all classes.
        recovery: number of that compact network.
        label: put in front of the names of progress stages, where several runs are built at the same time.
    """
    name = f"recovery {recovery}" if worker is None else f"worker {worker}"
    arguments = {
        "run": str(run.path.absolute()),
        "data": absolute(data),
        "worker": worker,
        "recovery": recovery,
        "label": label,
    }
    return ExecutorTask(f"{label} {name}".lstrip(), f"{__name__}:{build_network.__name__}", arguments)


def build_network(
    slot: Slot, on_progress: OnProgress, *, run: str, data: str, worker: int | None, recovery: int, label: str
) -> None:
    """Carry out a `network_task`: build one network, unless the run directory holds it already.

    An unfinished network goes on from its snapshot, so a task that was lost with its process may be carried out again.

    Args:
        slot: where to compute.
        on_progress: called with progress. Calls with the same function, run and slot load data and reference once.
        run: path of the run directory.
        data: see `network_task`, as the arguments below.
        worker: the worker whose network is built, or None.
        recovery: number of the compact network.
        label: put in front of the names of progress stages.

    Raises:
        SensaiError: the network cannot be made.
    """
    builder = _open(run, data, label, slot, on_progress)
    if worker is None:
        builder.recover(recovery)
    else:
        builder.specialise(worker)


def joint_tasks(run: Run, data: str, count: int) -> list[ExecutorTask]:
    """The tasks of the joint retraining, one for each of `count` processes that must run at the same time.

    Args:
        run: the run, with every worker's network as it was trained apart.
        data: source of the run's data, where it lies now.
        count: number of processes, at most one for each worker.
    """
    common = {"run": str(run.path.absolute()), "data": absolute(data), "count": count, "meeting": uuid.uuid4().hex}
    function = f"{__name__}:{retrain_part.__name__}"
    return [
        ExecutorTask(f"joint retraining, part {rank + 1} of {count}", function, common | {"rank": rank})
        for rank in range(count)
    ]


def retrain_part(
    slot: Slot, on_progress: OnProgress, *, run: str, data: str, rank: int, count: int, meeting: str
) -> None:
    """Carry out one of `joint_tasks`: train a part of the workers' networks together with the other processes.

    Args:
        slot: where to compute.
        on_progress: called with the progress, by the process of rank 0.
        run: path of the run directory.
        data: see `joint_tasks`.
        rank: of this process, below `count`; it holds every worker whose number leaves this remainder.
        count: number of processes.
        meeting: name of the file in the run directory by which the processes find each other.

    Raises:
        SensaiError: a network is damaged, another process is gone, memory ran out, or the disk is full.
    """
    builder = _open(run, data, "", slot, on_progress if rank == 0 else silent)
    n_workers = builder.plan.assignment.n_workers
    with exchange_between(builder.run.path / f".joint-{meeting}", rank, count, n_workers) as exchange:
        builder.retrain_jointly(range(rank, n_workers, count), exchange)


@dataclass(frozen=True)
class NetworkBuilder:
    """Builds networks of one run. What they are cut from, its profiles and its logits are loaded or taken once."""

    plan: RunPlan
    run: Run
    on_progress: OnProgress
    reference: SourceNetwork
    """The plan's reference, as a network to cut from."""
    _recovered: dict[str, SourceNetwork] = field(default_factory=dict)

    @cached_property
    def teacher_logits(self) -> TeacherLogits | None:
        """The reference's logits for what networks are trained on; None: computed in every step."""
        return open_teacher_logits(self.plan, self.run.path / FOLDER)

    def recover(self, number: int) -> None:
        """Build the compact network of that number, in as many steps as the recipe says.

        Raises:
            ModelError: the cut cannot be made.
            WorkError: memory ran out, or the disk is full.
        """
        before = REFERENCE
        for name, stage in rounds(self.plan, number):
            self._build(name, before, stage)
            before = name

    def specialise(self, worker: int) -> None:
        """Build a worker's network: from a recovered one where the recipe asks for them, else from the reference.

        Raises:
            ModelError: the cut cannot be made.
            WorkError: memory ran out, or the disk is full.
        """
        before = recovered(origin(self.plan, worker)) if recovery_images(self.plan) else REFERENCE
        self._build(self.run.apart(worker), before, specialisation(self.plan, worker))

    def retrain_jointly(self, workers: Sequence[int], exchange: Exchange | None = None) -> None:
        """Train the networks of all workers together, and keep those of `workers` as the run's subnets.

        Args:
            workers: whose networks this process holds.
            exchange: with the processes that hold the others; None: this one holds all.

        Raises:
            WorkError: another process is gone, memory ran out, or the disk is full.
        """
        with enough_memory(joint.STAGE, self.plan.device):
            joint.retrain_jointly(self.plan, self.run, self.teacher_logits, workers, self.on_progress, exchange)

    def _build(self, name: str, before: str, stage: Stage) -> None:
        unfinished = self.run.path / f".{name.replace('/', '-')}.training"
        snapshot = Snapshot(unfinished, {"name": name})  # the run knows the recipe
        if not self.run.has(name):
            with enough_memory(stage.name, self.plan.device):
                self.run.save(name, *make_network(self._source(before), self.teacher_logits, stage, snapshot))
        snapshot.clear()  # also where the process ended just after the network was written

    def _source(self, name: str) -> SourceNetwork:
        """A finished network to cut from; read back even if just made, for a resumed run must see the same numbers."""
        if name == REFERENCE:
            return self.reference
        if name not in self._recovered:
            made, network = self.run.network(name), self.run.load(name).network.to(self.plan.device)
            source = SourceNetwork(self.plan, network, made.cut, made.removed, self.on_progress, self.reference)
            self._recovered[name] = source
        return self._recovered[name]


@lru_cache(maxsize=1)
def _open(path: str, data: str, label: str, slot: Slot, on_progress: OnProgress) -> NetworkBuilder:
    require_device(slot.device)
    if slot.cores is not None:
        torch.set_num_threads(slot.cores)
    run = Run.open(Path(path))
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, data=data))
    plan = plan_of(run, device=slot.device, threads=slot.threads)
    labelled = partial(_with_label, on_progress, label) if label else on_progress
    return NetworkBuilder(plan, run, labelled, reference_source(plan, labelled))


def _with_label(on_progress: OnProgress, label: str, stage: str, done: int, total: int) -> None:
    on_progress(f"{label} {stage}", done, total)
