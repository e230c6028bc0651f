"""From a reference to one retrained subnet per worker; what a run directory holds already is not made again."""

from __future__ import annotations

from pathlib import Path

from pruning import heads
from pruning.checkpoint import RECOVERED, Run
from pruning.choose import Base, OnProgress, choose_cut, silent
from pruning.network import Stage, make_network
from pruning.plan import Plan
from pruning.retrain import Schedule, infer
from pruning.snapshot import Snapshot
from pruning.surgery import Size, apply_cut, measure
from sensai_serve import plugins
from sensai_serve.merge import MergePlan


def prune(plan: Plan, out: str | Path, *, on_progress: OnProgress = silent) -> Run:
    """Make every network of the plan that the run directory `out` does not hold yet.

    Raises:
        OutputExistsError: `out` holds something else.
        ModelError: the cut cannot be made.
    """
    run = Run.resume(out, plan.recipe, plan.digests)
    base = Base(plan, plan.reference, {}, on_progress)
    if run is None:
        check_cuts(base)
        dataset = plan.dataset
        run = Run(Path(out), plan.recipe, plan.digests, dataset.labels, dataset.spec, plan.assignment)
        run.create(plan.reference, plan.size)
    if recovery_images(plan):
        if not run.has(RECOVERED):
            _make(run, RECOVERED, base, recovery(plan))
        # Read back even where it was just made: a resumed run must go on from the same numbers.
        base = Base(plan, run.load(RECOVERED).network.to(plan.device), run.network(RECOVERED).cut, on_progress)
    for worker in range(run.assignment.n_workers):
        if not run.has(run.folder(worker)):
            _make(run, run.folder(worker), base, specialisation(plan, worker))
    return run


def _make(run: Run, name: str, base: Base, stage: Stage) -> None:
    snapshot = Snapshot(run.path / f".{name.replace('/', '-')}.training", {"name": name})  # the run knows the recipe
    run.save(name, *make_network(base, stage, snapshot))
    snapshot.clear()


def check_cuts(base: Base) -> None:
    """Raise what would be wrong with a cut of the reference before anything is written."""
    plan = base.plan
    workers = [specialisation(plan, worker) for worker in range(plan.assignment.n_workers)]
    for stage in [recovery(plan)] if recovery_images(plan) else workers:
        choose_cut(base, stage.amount, stage.classes)
    for stage in workers:
        heads.find(stage.head)
        plugins.find("pruning.sampling", stage.sampling, "batches")


def recovery_images(plan: Plan) -> int:
    """Image passes of the shared compact network; 0 where there is none."""
    given = plan.recipe.recover_images
    return max(12 * len(plan.train), 40_000) if given is None else given


def recovery(plan: Plan) -> Stage:
    """The one compact network for all classes that workers are then made of."""
    recipe = plan.recipe
    return Stage(
        "recover",
        tuple(range(plan.dataset.n_classes)),
        recipe.amount if recipe.recover_amount is None else recipe.recover_amount,
        "softmax",
        "uniform",
        Schedule(recovery_images(plan), recipe.recover_rate, recipe.batch),
        recipe.seed,
    )


def specialisation(plan: Plan, worker: int) -> Stage:
    """One worker's own network. Its seed is its own, so the order in which workers are made does not matter."""
    recipe = plan.recipe
    images = max(len(plan.train), 8_000) if recipe.images is None else recipe.images
    amount: float | None = recipe.amount
    if recovery_images(plan):
        if recipe.recover_amount is None:
            amount = None
        elif recipe.target == "channels":  # a share of what is left is not a share of the reference's
            amount = 1 - (1 - recipe.amount) / (1 - recipe.recover_amount)
    return Stage(
        f"worker {worker}",
        plan.assignment.rows[worker],
        amount,
        recipe.head,
        recipe.sampling,
        Schedule(images, recipe.rate, recipe.batch),
        recipe.seed + 1 + worker,
    )


def planned_sizes(plan: Plan, *, on_progress: OnProgress = silent) -> list[Size]:
    """What each worker's cut leaves, before anything is retrained (with the reference's own output layer)."""
    base, recipe = Base(plan, plan.reference, {}, on_progress), plan.recipe
    cuts = (choose_cut(base, recipe.amount, row) for row in plan.assignment.rows)
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
