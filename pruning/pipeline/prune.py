"""Prunes a reference into one retrained subnet per worker; what the run directory holds is not made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruning import heads
from pruning.cutting.size import measure
from pruning.executors import Execute, Slot
from pruning.limits import enough_memory
from pruning.merging import merge_plan
from pruning.notices import say
from pruning.pipeline.builder import NetworkBuilder, joint_tasks, network_task
from pruning.pipeline.estimate import whole
from pruning.pipeline.joint import check_outputs, forget_joint
from pruning.pipeline.subnet import cut_network
from pruning.pipeline.teacher import FOLDER, compute_teacher_logits
from pruning.planning.plan import RunPlan, as_begun
from pruning.planning.stages import recovered, recoveries_of, recovery, recovery_images, specialisation
from pruning.run import Run, reached, warning
from pruning.selection.choose import choose_cut
from pruning.selection.latency import Latency, meet_budget
from pruning.selection.source import SourceNetwork, reference_source
from pruning.training.loop import infer
from sensai_serve import plugins
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy
from sensai_serve.progress import OnProgress, silent


def prune_reference(
    plan: RunPlan,
    out: str | Path,
    *,
    slots: Sequence[Slot] = (),
    executor: str = "local",
    latency: Latency | None = None,
    on_progress: OnProgress = silent,
) -> Run:
    """Make every network of the plan that the run directory `out` does not hold yet.

    Args:
        plan: the plan of the run.
        out: the run directory, a new one or an unfinished one.
        slots: where workers' networks are made; one after the other in this process where there are less than two. The
            weights are the same however many there are, if each has as many threads.
        executor: name of the plugin that carries out the tasks of making them.
        latency: measures a subnet; needed where the recipe's target is microseconds.
        on_progress: called with progress.

    Raises:
        OutputExistsError: `out` holds something else.
        DataError: the run there is of data that is normalised otherwise.
        ModelError: the cut cannot be made.
        WorkError: memory or the disk is full, or a process died; what is done is kept.
    """
    execute: Execute = plugins.find("pruning.executors", executor, "execute")
    run = Run.resume(out, plan.recipe, plan.digests)
    plan = meet_budget(plan, latency, on_progress) if run is None else as_begun(plan, run)
    reference = reference_source(plan, on_progress)
    if run is None:
        with enough_memory("profile", plan.device):
            check_cuts(reference)
        dataset = plan.dataset
        task = (dataset.labels, dataset.spec, plan.assignment, plan.budget, dataset.inputs)
        run = Run(Path(out), plan.recipe, plan.digests, *task)
        run.create(plan.reference, plan.size, dataset)
    if run.recipe.joint_images:
        check_outputs(plan, run)
    recoveries = [number for number in range(recoveries_of(plan)) if not run.has(recovered(number))]
    every = range(run.assignment.n_workers)
    unfinished = any(not run.has(run.folder(worker)) for worker in every)
    workers = [worker for worker in every if not run.has(run.apart(worker))] if unfinished else []
    if recoveries or unfinished:
        compute_teacher_logits(plan, run.path / FOLDER, on_progress)
    builder, data = NetworkBuilder(plan, run, on_progress, reference), plan.recipe.data
    elsewhere = len(slots) > 1 or (slots and executor != "local")
    if elsewhere and recoveries_of(plan) > 1:  # also the last one of an unfinished run: where it was begun
        execute([network_task(run, data, recovery=number) for number in recoveries], slots, on_progress)
    else:
        for number in recoveries:
            builder.recover(number)
    if elsewhere and workers:
        execute([network_task(run, data, worker=worker) for worker in workers], slots, on_progress)
    else:
        for worker in workers:
            builder.specialise(worker)
    if unfinished and run.recipe.joint_images:
        if elsewhere:
            execute(joint_tasks(run, data, min(len(slots), len(every))), slots, on_progress)
        else:
            builder.retrain_jointly(every)
        forget_joint(run)
    return run


def check_cuts(source: SourceNetwork) -> None:
    """Check that the reference can be cut as the recipe asks, before anything is written; say it where not nearly.

    Raises:
        ModelError: the cut cannot be made.
        PluginError: there is no such criterion, head or sampling.
    """
    plan = source.plan
    workers = [specialisation(plan, worker) for worker in range(plan.assignment.n_workers)]
    for stage in [recovery(plan)] if recovery_images(plan) else workers:
        choose_cut(source, stage.amount, stage.depth, stage.classes)
    if plan.budget.target in ("macs", "parameters"):
        # The reference is cut because there is nothing else yet: what cannot be met now cannot be met later.
        network, _, _ = cut_network(source, whole(plan, 0))
        found = reached(plan.recipe, [measure(network, plan.shape)], plan.size)
        if found is not None and found.missed:
            say(f"cut: {warning(found, plan.recipe)}")
    for stage in workers:
        heads.find(stage.head, plan.recipe.task)
        plugins.find("pruning.sampling", stage.sampling, "batches")


def validation_accuracy(plan: RunPlan, run: Run) -> float:
    """Accuracy of the merged answer on the validation part, in [0, 1], from the scores that each worker kept.

    Of sets of labels it is the F1 over all of them.
    """
    plan = as_begun(plan, run)
    truth = plan.dataset.y[plan.validation]
    scores = [run.validation_scores(worker) for worker in range(run.assignment.n_workers)]
    return accuracy(ScoredInputs(merge_plan(run, truth), scores).labels(), truth)


def reference_accuracy(plan: RunPlan) -> float:
    """Accuracy of the reference on the validation part, in [0, 1]; of sets of labels the F1 over all of them.

    It is optimistic where the weights have seen all training images, as published weights have.
    """
    logits = infer(plan.reference, plan.dataset, plan.dataset.x[plan.validation])
    answers = logits >= 0 if plan.recipe.task == "multilabel" else logits.argmax(axis=1)
    return accuracy(answers, plan.dataset.y[plan.validation])
