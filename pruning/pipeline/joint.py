"""Retrains all workers jointly: their networks learn from the loss of the merged answer, with workers lost at random.

Networks that were trained apart err alike where they were made of the same data; trained on what their merged answer
gets wrong, each learns what the others lack. Losing workers at random meanwhile keeps any of them dispensable, and a
weight on each worker's own loss keeps every copy a judgement of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from pruning import heads
from pruning.cutting.graph import output_layer
from pruning.cutting.size import measure
from pruning.heads import Subnet
from pruning.pipeline.subnet import calibrate, distillation
from pruning.pipeline.teacher import TeacherLogits, answering_once, make_teacher
from pruning.planning.plan import RunPlan
from pruning.planning.stages import joint_schedule
from pruning.run import Run
from pruning.training.batches import Batch
from pruning.training.exchange import Exchange
from pruning.training.joint import JointLoss, JointSnapshots, fit_jointly, merged_log_odds
from pruning.training.loop import infer, threads_for
from sensai_serve import plugins
from sensai_serve.errors import InputError
from sensai_serve.progress import OnProgress

STAGE = "joint"
SNAPSHOTS = ".joint.training"


def check_outputs(plan: RunPlan, run: Run) -> None:
    """Check the networks that there are already: that each scores its worker's classes, and with the recipe's head.

    Raises:
        InputError: one of them is another worker's, or of another recipe.
    """
    for worker, row in enumerate(plan.assignment.rows):
        name = run.apart(worker)
        if run.has(name) and ((there := run.network(name)).classes != row or there.head != plan.recipe.head):
            raise InputError(
                f"{run.path / name} scores classes {list(there.classes)[:20]} with head {there.head!r}, expected "
                f"{list(row)[:20]} with head {plan.recipe.head!r} for the joint retraining"
            )


def retrain_jointly(
    plan: RunPlan,
    run: Run,
    teacher_logits: TeacherLogits | None,
    workers: Sequence[int],
    on_progress: OnProgress,
    exchange: Exchange | None = None,
) -> None:
    """Train the networks that `Run.apart` names together, and keep those of `workers` as the run's subnets.

    Args:
        plan: the plan of the run.
        run: the run, which holds every worker's network as it was trained apart.
        teacher_logits: the reference's logits; None: computed in every step.
        workers: the workers whose networks this process holds.
        on_progress: called with progress, in the stage `STAGE`.
        exchange: shares logits with the processes that hold the others; None: this one holds all.

    Raises:
        InputError: a network is missing or damaged.
        WorkError: another process ended, memory ran out, or the disk is full.
    """
    recipe, rows, dataset = plan.recipe, plan.assignment.rows, plan.dataset
    check_outputs(plan, run)
    loaded = {worker: run.load(run.apart(worker)) for worker in workers}
    networks = {worker: subnet.network.to(plan.device).requires_grad_(True) for worker, subnet in loaded.items()}
    batches = plugins.find("pruning.sampling", "uniform", "batches")(
        dataset.y, plan.train, tuple(range(dataset.n_classes)), recipe.batch, np.random.default_rng(recipe.seed)
    )
    snapshots = JointSnapshots(run.path / SNAPSHOTS, plan.assignment.n_workers)
    one = next(iter(networks.values()))
    fit_jointly(
        networks,
        plan.assignment.n_workers,
        dataset,
        batches=batches,
        loss=joint_loss(plan, teacher_logits),
        most_lost=plan.assignment.redundancy - 1,
        schedule=joint_schedule(plan),
        seed=recipe.seed,
        precision=recipe.precision,
        views=None if teacher_logits is None else teacher_logits.views,
        threads=plan.threads or threads_for(one, measure(one, plan.shape).macs),
        exchange=exchange,
        on_step=lambda done, total: on_progress(STAGE, done, total),
        snapshots=snapshots,
    )
    output = output_layer(plan.uncut, plan.shape)
    for worker, network in networks.items():
        if recipe.calibration == "temperature":
            calibrate(plan, network, output, loaded[worker].head, rows[worker])
        scores = infer(Subnet(network, loaded[worker].head), dataset, dataset.x[plan.validation])
        if not run.has(run.folder(worker)):
            run.save(run.folder(worker), run.network(run.apart(worker)), network, scores)


def forget_joint(run: Run) -> None:
    """Remove what an unfinished joint retraining kept, once every worker's network is written."""
    JointSnapshots(run.path / SNAPSHOTS, run.assignment.n_workers).clear()


def joint_loss(plan: RunPlan, teacher_logits: TeacherLogits | None) -> JointLoss:
    """The loss of the merged answer, plus `Recipe.joint_own` times the loss of each worker by itself.

    The merged answer is a softmax (of sets of labels a sigmoid) over each class's mean log odds, over the copies that
    are not lost; it is held against the reference's logits and the labels, as `distillation` does for one network. It
    is weighted by the number of copies, so that a network's step is as long as it is when it is trained alone.
    """
    recipe, assignment = plan.recipe, plan.assignment
    head = heads.find(recipe.head, recipe.task)
    teacher = answering_once(make_teacher(plan)) if teacher_logits is None and recipe.distil > 0 else None
    rows = assignment.rows if recipe.joint_own > 0 else ()
    own = [distillation(plan, head, row, teacher_logits, teacher) for row in rows]
    every = tuple(range(plan.dataset.n_classes))
    of_all = heads.find(heads.of_reference(recipe.task), recipe.task)
    merged_loss = distillation(plan, of_all, every, teacher_logits, teacher)
    copies = float(np.mean([len(workers) for workers in assignment.workers_of]))

    def loss(batch: Batch, logits: Mapping[int, Tensor], lost: frozenset[int]) -> Tensor:
        odds = {worker: heads.log_odds(head, of) for worker, of in logits.items()}
        merged = merged_log_odds(odds, assignment.rows, len(every), lost)
        total = copies * merged_loss(batch, merged)
        for worker, of_worker in enumerate(own):
            total = total + recipe.joint_own * of_worker(batch, logits[worker])
        return total / (1 + recipe.joint_own)

    return loss
