"""Estimates a run before it is made: sizes from real cuts, time from a burst of real training steps."""

from __future__ import annotations

import itertools
import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning import heads
from pruning.cutting.graph import output_layer
from pruning.cutting.size import Size, measure
from pruning.executors import Slot
from pruning.heads import replace_output
from pruning.limits import enough_memory
from pruning.pipeline.subnet import cut_network, distillation
from pruning.pipeline.teacher import BATCH, STAGE, TeacherLogits, make_teacher, views_of
from pruning.planning.plan import RunPlan
from pruning.planning.stages import Stage, joint_schedule, recoveries_of, rounds, specialisation
from pruning.selection.latency import Latency, meet_budget
from pruning.selection.source import SourceNetwork, reference_source
from pruning.training.augment import Views
from pruning.training.loop import fit, threads_for
from sensai_serve import plugins
from sensai_serve.progress import OnProgress, silent

BURST = 6
"""Training steps that are timed; the first two warm up."""
BYTES = 4
"""Bytes of a parameter in a file."""
SNAPSHOT = 3
"""Numbers that the snapshot of an unfinished training keeps for each parameter, at most: its value and two moments."""
HERE = Slot("", None)
"""Stands for this process and the device that the plan's reference is on."""


@dataclass(frozen=True)
class Estimate:
    """Size, time and disk space of a run."""

    sizes: tuple[Size, ...]
    """Size of each worker's network, with the reference's own output layer."""
    seconds: float
    """Seconds for the teacher logits and for retraining; profiling and reconstruction come on top."""
    disk: int
    """Bytes on disk at most, the snapshots of unfinished trainings included."""


def estimate(
    plan: RunPlan, slots: Sequence[Slot] = (), *, latency: Latency | None = None, on_progress: OnProgress = silent
) -> Estimate:
    """Cut every worker's network and train a few steps of the first; nothing is kept.

    Args:
        plan: the plan of the run.
        slots: where workers' networks would be made.
        latency: measures a subnet; needed where the recipe's target is microseconds.
        on_progress: called with the progress of profiling and measuring.

    Raises:
        ModelError: the cut cannot be made.
        WorkError: memory ran out.
    """
    plan = meet_budget(plan, latency, on_progress)
    source = reference_source(plan, on_progress)
    workers = [whole(plan, worker) for worker in range(plan.assignment.n_workers)]
    sizes = tuple(measure(cut_network(source, stage)[0], plan.shape) for stage in workers)
    jobs = max(1, len(slots))
    seconds = math.ceil(len(workers) / jobs) * _seconds(source, workers[0], slots[0] if slots else HERE)
    kept = [plan.size.parameters, *(size.parameters for size in sizes)]
    if recoveries := recoveries_of(plan):
        alone = recoveries == 1 or not slots  # more are made where workers are
        for stage in _from_the_reference(plan):
            kept += recoveries * [measure(cut_network(source, stage)[0], plan.shape).parameters]
            seconds += math.ceil(recoveries / jobs) * _seconds(source, stage, HERE if alone else slots[0])
    snapshots = jobs * max(kept[1:])
    if plan.recipe.joint_images:
        joint = replace(workers[0], schedule=joint_schedule(plan))
        seconds += math.ceil(len(workers) / jobs) * _seconds(source, joint, slots[0] if slots else HERE)
        own = [size.parameters for size in sizes]
        kept += own  # those that were trained apart stay
        snapshots = max(snapshots, 2 * sum(own))  # of all at once, beside those before
    logits = 0
    if (views := views_of(plan)) is not None:
        with enough_memory(STAGE, plan.device):
            seconds += _seconds_for_teacher(plan, views)
        logits = 2 * views.count * len(plan.train) * plan.dataset.n_classes
    return Estimate(sizes, seconds, logits + BYTES * (sum(kept) + SNAPSHOT * snapshots))


def whole(plan: RunPlan, worker: int) -> Stage:
    """A worker's network as if it were cut from the reference at once."""
    return replace(specialisation(plan, worker), amount=plan.budget.amount)


def _from_the_reference(plan: RunPlan) -> list[Stage]:
    """The steps of a recovery, each as if it were cut from the reference at once."""
    stages = [stage for _, stage in rounds(plan)]
    if plan.budget.target != "channels":
        return stages
    left = itertools.accumulate((1 - (stage.amount or 0) for stage in stages), operator.mul)
    return [replace(stage, amount=1 - part) for stage, part in zip(stages, left, strict=True)]


def _no_logits(plan: RunPlan) -> TeacherLogits | None:
    """Zeros in place of teacher logits that are not computed yet; they take as long to look up."""
    views = views_of(plan)
    if views is None:
        return None
    nothing = np.broadcast_to(np.float16(0), (len(plan.train), plan.dataset.n_classes))
    return TeacherLogits(views, views.count * (nothing,), plan.train)


def _seconds_for_teacher(plan: RunPlan, views: Views) -> float:
    teacher, x = make_teacher(plan), torch.zeros(BATCH, *plan.shape, device=plan.device)
    at = [time.perf_counter()]
    for _ in range(3):
        float(teacher(x).sum())  # a number on the host: waits until a GPU is done
        at.append(time.perf_counter())
    return float(np.median(np.diff(at))) * views.count * len(plan.train) / BATCH


def _seconds(source: SourceNetwork, stage: Stage, slot: Slot) -> float:
    plan, head = source.plan, heads.find(stage.head, source.plan.recipe.task)
    teacher_logits = _no_logits(plan)
    network = cut_network(source, stage)[0]
    replace_output(network, output_layer(source.network, plan.shape), head, stage.classes)
    network.requires_grad_(True)
    pays = threads_for(network, measure(network, plan.shape).macs)
    batches = plugins.find("pruning.sampling", stage.sampling, "batches")
    at = []

    def note(done: int, total: int) -> None:
        if plan.device.type == "cuda":
            torch.cuda.synchronize(plan.device)
        at.append(time.perf_counter())

    with enough_memory(stage.name, plan.device):
        fit(
            network,
            plan.dataset,
            batches=batches(
                plan.dataset.y, plan.train, stage.classes, stage.schedule.batch, np.random.default_rng(stage.seed)
            ),
            loss=distillation(plan, head, stage.classes, teacher_logits),
            schedule=replace(stage.schedule, images=BURST * stage.schedule.batch),
            seed=stage.seed,
            precision=plan.recipe.precision,
            views=None if teacher_logits is None else teacher_logits.views,
            threads=slot.threads or plan.threads or min(pays, slot.cores or pays),
            on_step=note,
        )
    return float(np.median(np.diff(at[1:]))) * math.ceil(stage.schedule.images / stage.schedule.batch)
