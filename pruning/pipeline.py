"""From a reference to one retrained subnet per worker; what a run directory holds already is not made again."""

from __future__ import annotations

from pathlib import Path

from pruning.checkpoint import RECOVERED, Run
from pruning.network import OnProgress, Stage, choose_cut, make_base, make_network, silent
from pruning.plan import Plan
from pruning.retrain import Schedule, infer
from pruning.surgery import Size, apply_cut, measure
from sensai_serve.merge import MergePlan


def prune(plan: Plan, out: str | Path, *, on_progress: OnProgress = silent) -> Run:
    """Make every network of the plan that the run directory `out` does not hold yet.

    Raises:
        OutputExistsError: `out` holds something else.
        ModelError: the cut cannot be made.
    """
    run = Run.resume(out, plan.recipe, plan.digests)
    if run is None:
        dataset = plan.dataset
        run = Run(Path(out), plan.recipe, plan.digests, dataset.labels, dataset.spec, plan.assignment)
        run.create(plan.reference, plan.size)
    recipe = plan.recipe

    base = make_base(plan, plan.reference, {}, on_progress)
    if recipe.recover_images:
        if not run.has(RECOVERED):
            run.save(RECOVERED, *make_network(plan, base, recovery(plan), on_progress))
        base = make_base(plan, run.load(RECOVERED).network.to(plan.device), run.network(RECOVERED).cut, on_progress)
    for worker in range(run.assignment.n_workers):
        if not run.has(run.folder(worker)):
            run.save(run.folder(worker), *make_network(plan, base, specialisation(plan, worker), on_progress))
    return run


def recovery(plan: Plan) -> Stage:
    """The one compact network for all classes that workers are then made of."""
    recipe = plan.recipe
    return Stage(
        "recover",
        tuple(range(plan.dataset.n_classes)),
        recipe.amount if recipe.recover_amount is None else recipe.recover_amount,
        "softmax",
        "uniform",
        Schedule(recipe.recover_images, recipe.recover_rate, recipe.batch),
        recipe.seed,
    )


def specialisation(plan: Plan, worker: int) -> Stage:
    """One worker's own network. Its seed is its own, so the order in which workers are made does not matter."""
    recipe = plan.recipe
    return Stage(
        f"worker {worker}",
        plan.assignment.rows[worker],
        recipe.amount,
        recipe.head,
        recipe.sampling,
        Schedule(recipe.images, recipe.rate, recipe.batch),
        recipe.seed + 1 + worker,
    )


def planned_sizes(plan: Plan, *, on_progress: OnProgress = silent) -> list[Size]:
    """What each worker's cut leaves, before anything is retrained (with the reference's own output layer)."""
    base = make_base(plan, plan.reference, {}, on_progress)
    cuts = (choose_cut(plan, base, specialisation(plan, worker)) for worker in range(plan.assignment.n_workers))
    return [measure(apply_cut(plan.reference, cut, plan.shape), plan.shape) for cut in cuts]


def validation_accuracy(plan: Plan, run: Run) -> float:
    """Accuracy of the merged answer on the validation part, from the scores each worker kept."""
    collector = MergePlan(run.assignment, "majority", 0.5).collect(len(plan.validation), "all")
    for worker in range(run.assignment.n_workers):
        collector.add(worker, run.validation_scores(worker))
    return float((collector.answer().class_id == plan.dataset.y[plan.validation]).mean())


def reference_accuracy(plan: Plan) -> float:
    """Accuracy of the reference on the validation part; optimistic where its weights have seen all training images."""
    logits = infer(plan.reference, plan.dataset, plan.dataset.x[plan.validation])
    return float((logits.argmax(axis=1) == plan.dataset.y[plan.validation]).mean())
