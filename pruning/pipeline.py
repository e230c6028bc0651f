"""From a reference to one retrained subnet per worker: profile, assign, prune, retrain; resumes between networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import data, heads, models
from pruning.activations import Profile, profile, some_of_each_class
from pruning.checkpoint import RECOVERED, Network, Run
from pruning.criteria import Criterion, Thresholds
from pruning.data import Dataset, Labels
from pruning.heads import Subnet, replace_output
from pruning.recipe import Recipe
from pruning.retrain import Schedule, Targets, autocast, fit, infer, use_bf16
from pruning.surgery import (
    Cut,
    Size,
    Unit,
    apply_cut,
    compose,
    cut_below,
    cut_share,
    find_units,
    measure,
    output_layer,
    search_share,
    unit_importance,
)
from sensai_serve import assignment, plugins
from sensai_serve.assignment import Assignment
from sensai_serve.bundle import sha256_of
from sensai_serve.merge import MergePlan
from sensai_serve.preprocess import Floats

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much it is in all."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Plan:
    """A recipe with what it names loaded: all that is known before the work starts."""

    recipe: Recipe
    dataset: Dataset
    reference: nn.Module
    assignment: Assignment
    digests: dict[str, str]
    train: Labels
    """Indices of the training part that are trained on."""
    validation: Labels
    """Indices of the training part that choices are made on."""
    size: Size
    """Of the reference."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return self.dataset.spec.shape


def make_plan(recipe: Recipe, weights: str | Path, *, device: str = "cpu", on_progress: OnProgress = silent) -> Plan:
    """Load data and reference, group the classes where the recipe says so, and assign them to workers.

    Args:
        recipe: every option.
        weights: of the reference.
        device: torch's name of where to compute.
        on_progress: hears of progress.

    Raises:
        InputError: the data, the model, the weights or the assignment is wrong.
    """
    dataset = data.load(recipe.data, seed=recipe.seed)
    train, validation = data.split(dataset.y, recipe.validation, recipe.seed)
    model = models.create(recipe.model, dataset.n_classes, dataset.spec.shape)
    models.load_weights(model, weights)
    model.to(device).eval()
    groups = None
    if recipe.groups is not None:
        groups = group_classes(recipe, dataset, model, train)
    matrix = assignment.build(
        recipe.assignment,
        dataset.n_classes,
        groups=groups,
        offsets=recipe.offsets,
        redundancy=recipe.redundancy,
    )
    digests = {"data": dataset.digest(), "weights": sha256_of(Path(weights))}
    return Plan(recipe, dataset, model, matrix, digests, train, validation, measure(model, dataset.spec.shape))


def group_classes(recipe: Recipe, dataset: Dataset, model: nn.Module, train: Labels) -> list[list[int]]:
    """Put the classes into `recipe.groups` groups of equal size (to within one)."""
    from pruning.grouping import class_features

    indices = some_of_each_class(dataset.y, train, recipe.profile_images, recipe.seed)
    features = class_features(model, dataset, indices)  # [C, features]
    groups: list[list[int]] = plugins.find("pruning.grouping", recipe.grouping, "group")(
        features, recipe.groups, recipe.seed
    )
    return groups


def prune(plan: Plan, out: str | Path, *, on_progress: OnProgress = silent) -> Run:
    """Make every network of the plan that the run directory `out` does not hold yet.

    Raises:
        OutputExistsError: `out` holds something else.
        ModelError: the cut cannot be made.
    """
    run = Run.resume(out, plan.recipe, plan.digests)
    if run is None:
        run = Run.create(out, plan.recipe, plan.digests, plan.assignment, plan.reference)
    recipe = plan.recipe

    base = make_base(plan, plan.reference, {}, on_progress)
    if recipe.recover_images:
        if not run.has(RECOVERED):
            run.save(RECOVERED, *make_network(plan, base, recovery(plan), on_progress))
        base = make_base(plan, run.load(RECOVERED).network.to(_device(plan)), run.network(RECOVERED).cut, on_progress)
    for worker in range(run.assignment.n_workers):
        if not run.has(run.folder(worker)):
            run.save(run.folder(worker), *make_network(plan, base, specialisation(plan, worker), on_progress))
    return run


@dataclass(frozen=True)
class Stage:
    """What one network is for and how it is retrained."""

    name: str
    classes: tuple[int, ...]
    amount: float
    """How much is cut, in the recipe's target."""
    head: str
    sampling: str
    schedule: Schedule
    seed: int


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


@dataclass(frozen=True)
class Base:
    """What networks are cut from: the reference, or the compact network recovered from it."""

    network: nn.Module
    cut: Cut
    """That made it from the reference."""
    units: Sequence[Unit]
    profile: Profile


def make_base(plan: Plan, network: nn.Module, cut: Cut, on_progress: OnProgress = silent) -> Base:
    """Profile `network`, which gives logits [N, C], and find what can be cut in it."""
    indices = some_of_each_class(plan.dataset.y, plan.train, plan.recipe.profile_images, plan.recipe.seed)
    stage = "profile recovered" if cut else "profile"
    measured = profile(
        network,
        plan.dataset,
        indices,
        theta1=plan.recipe.theta1,
        on_step=lambda done, total: on_progress(stage, done, total),
    )
    return Base(network, cut, find_units(network, plan.shape), measured)


def make_network(
    plan: Plan, base: Base, stage: Stage, on_progress: OnProgress = silent
) -> tuple[Network, nn.Module, Floats]:
    """Cut a network for some classes out of `base`, give it their head, and retrain it.

    Returns:
        How to rebuild it, the network, and its scores [V, k] of the validation part.
    """
    dataset, head = plan.dataset, heads.find(stage.head)
    cut = choose_cut(plan, base, stage)
    network = apply_cut(base.network, cut, plan.shape)
    replace_output(network, output_layer(base.network, plan.shape), head, stage.classes)
    network.requires_grad_(True)

    batches = plugins.find("pruning.sampling", stage.sampling, "batches")(
        dataset.y, plan.train, stage.classes, stage.schedule.batch, np.random.default_rng(stage.seed)
    )
    fit(
        network,
        head,
        dataset,
        batches=batches,
        targets=soft_targets(plan, stage.classes),
        schedule=stage.schedule,
        seed=stage.seed,
        precision=plan.recipe.precision,
        on_step=lambda done, total: on_progress(stage.name, done, total),
    )
    subnet = Subnet(network, head)
    size = measure(subnet, plan.shape)
    made = Network(stage.classes, stage.head, compose(base.cut, cut), size.macs, size.parameters)
    return made, network, infer(subnet, dataset, dataset.x[plan.validation])


def choose_cut(plan: Plan, base: Base, stage: Stage) -> Cut:
    """The channels of `base` that stay for a stage's classes, as the recipe's criterion and target say.

    Raises:
        ModelError: a layer would lose all its channels, or the budget is smaller than the smallest cut.
    """
    recipe = plan.recipe
    criterion: Criterion = plugins.find("pruning.criteria", recipe.criterion, "importance")
    thresholds = Thresholds(recipe.theta1, recipe.theta2)
    importance = {
        unit.layer: unit_importance(
            unit, lambda layer: criterion(base.profile.statistics(layer, stage.classes), thresholds)
        )
        for unit in base.units
    }
    if recipe.target == "threshold":
        return cut_below(base.units, importance, stage.amount)

    def size_at(share: float) -> Size:
        return measure(apply_cut(base.network, cut_share(base.units, importance, share), plan.shape), plan.shape)

    if recipe.target == "parameters":
        share = search_share(lambda s: size_at(s).parameters, int(stage.amount * plan.size.parameters))
    elif recipe.target == "macs":
        share = search_share(lambda s: size_at(s).macs, int(stage.amount * plan.size.macs))
    else:
        share = stage.amount
    return cut_share(base.units, importance, share)


def planned_sizes(plan: Plan, *, on_progress: OnProgress = silent) -> list[Size]:
    """What each worker's cut leaves, before anything is retrained (with the reference's own output layer)."""
    base = make_base(plan, plan.reference, {}, on_progress)
    cuts = (choose_cut(plan, base, specialisation(plan, worker)) for worker in range(plan.assignment.n_workers))
    return [measure(apply_cut(plan.reference, cut, plan.shape), plan.shape) for cut in cuts]


def soft_targets(plan: Plan, classes: Sequence[int]) -> Targets:
    """What a network for `classes` is trained towards: labels, and the reference's probabilities for the same views.

    Both losses are linear in their targets, so weighing targets is weighing losses.
    """
    weight, chosen = plan.recipe.distil, list(classes)
    device = _device(plan)
    hard = F.one_hot(torch.from_numpy(plan.dataset.y), plan.dataset.n_classes).float()[:, chosen].to(device)
    if weight == 0:
        return lambda x, indices: hard[indices]
    faster = use_bf16(plan.recipe.precision, plan.shape, device)
    teacher = copy.deepcopy(plan.reference).eval()
    if len(plan.shape) == 3:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def targets(x: Tensor, indices: Labels) -> Tensor:
        with autocast(device, enabled=faster):
            logits: Tensor = teacher(x)
        return (1 - weight) * hard[indices] + weight * logits.float().softmax(dim=1)[:, chosen]

    return targets


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


def _device(plan: Plan) -> torch.device:
    return next(plan.reference.parameters()).device
