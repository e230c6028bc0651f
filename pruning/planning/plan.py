"""Loads and checks everything that a recipe names, before the work starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pruning import data, models
from pruning.cutting.profile import some_of_each_class
from pruning.cutting.size import Size, measure
from pruning.data import Dataset, Labels
from pruning.grouping import Classes, Group, check_groups
from pruning.heads import check_head
from pruning.notices import say
from pruning.planning.reference import ReferenceCheck, check_reference, labelled_by
from pruning.recipe import BEST_RULE, Budget, Recipe
from pruning.run import REFERENCE, Run
from pruning.training.loop import use_threads
from sensai_serve import assignment, plugins
from sensai_serve.assignment import Assignment
from sensai_serve.bundles import sha256_of
from sensai_serve.errors import InputError
from sensai_serve.merge.rules import allow, check_heads, find_label_rule


@dataclass(frozen=True)
class RunPlan:
    """A recipe with what it names loaded: everything that is known before the work starts."""

    recipe: Recipe
    dataset: Dataset
    reference: nn.Module
    uncut: nn.Module
    """The reference as networks are cut from it: behind a mean over neighbouring values where the recipe says so."""
    assignment: Assignment
    digests: dict[str, str]
    """SHA-256 of the ``data`` and of the ``weights``."""
    train: Labels
    """Indices of the training part that are trained on."""
    validation: Labels
    """Indices of the training part that choices are made on."""
    size: Size
    """Size of the reference."""
    budget: Budget
    """The recipe's budget; one in microseconds as the fraction of channels that it was measured to come to."""
    threads: int | None = None
    """CPU threads; None: as many as pay, for each network."""
    check: ReferenceCheck | None = None
    """How the reference answers some of the validation part; None for a run that goes on."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return self.dataset.spec.shape

    @property
    def device(self) -> torch.device:
        """Device that the reference is on."""
        return next(self.reference.parameters()).device


def make_plan(recipe: Recipe, weights: str | Path, *, device: str = "cpu", threads: int | None = None) -> RunPlan:
    """Load data and reference, hold them against each other, and assign the classes, grouped or not, to workers.

    Args:
        recipe: every option.
        weights: file with the reference's weights.
        device: torch's name of the device to compute on.
        threads: CPU threads; None: as many as pay.

    Raises:
        InputError: the data, the model, the weights or the assignment is wrong, or classes do not divide into groups.
    """
    dataset = data.load(recipe.data, seed=recipe.seed, unlabelled=recipe.labels == "reference", task=recipe.task)
    use_threads(threads, dataset.spec.shape)
    model = models.create(recipe.model, dataset.n_classes, dataset.spec.shape, dataset.inputs)
    models.load_weights(model, weights)
    digests = {"data": dataset.digest(), "weights": sha256_of(Path(weights))}
    for note in models.make_plain(model):
        say(f"model: {note}")
    model.to(device).eval()
    if recipe.labels == "reference":
        dataset = labelled_by(model, dataset, recipe.task)
        data.check_task(recipe.data, dataset, recipe.task)
    train, validation = data.split_to_choose(dataset, recipe.validation, recipe.seed)
    check = check_reference(model, dataset, validation, recipe.seed, own=recipe.labels == "reference")
    groups = groups_of(recipe, dataset, model)
    matrix = assignment.build(
        recipe.assignment,
        dataset.n_classes,
        groups=groups,
        offsets=recipe.offsets,
        redundancy=recipe.redundancy,
    )
    check_scores(recipe, matrix)
    most = matrix.n_workers if max(map(len, matrix.workers_of)) > 1 else 1
    if recipe.recoveries > most:
        why = "as there are workers" if most > 1 else "where no class has two copies"
        raise InputError(f"recoveries is {recipe.recoveries}, expected at most as many, {most}, {why}")
    size = measure(model, dataset.spec.shape)
    uncut = models.downsample(model, recipe.downsample, dataset.spec.shape, dataset.inputs)
    return RunPlan(
        recipe, dataset, model, uncut, matrix, digests, train, validation, size, recipe.budget, threads, check
    )


def check_scores(recipe: Recipe, matrix: Assignment) -> None:
    """Check that the recipe's head can score what workers cover, and its merge rule those scores.

    Raises:
        PluginError: there is no such head or rule.
        InputError: they do not fit.
    """
    check_head(recipe.head, matrix, recipe.task)
    if recipe.merge != BEST_RULE:
        if ":" in recipe.merge:
            allow(recipe.merge)  # who gives the recipe trusts it
        check_heads(recipe.merge, [recipe.head])
        if recipe.task == "multilabel":
            find_label_rule(recipe.merge)


def plan_of(run: Run, *, device: str = "cpu", threads: int | None = None) -> RunPlan:
    """The plan that a run directory was made for, from what it holds and the data of its recipe.

    Args:
        run: an opened run.
        device: torch's name of the device to compute on.
        threads: CPU threads; None: as many as pay.

    Raises:
        InputError: the data is missing or another one, or the directory is damaged.
    """
    use_threads(threads, run.spec.shape)
    train, validation = run.split
    reference, kept = run.load(REFERENCE).network.to(device).eval(), run.network(REFERENCE)
    return RunPlan(
        run.recipe,
        run.dataset,
        reference,
        models.downsample(reference, run.recipe.downsample, run.spec.shape, run.inputs),
        run.assignment,
        run.digests,
        train,
        validation,
        Size(kept.macs, kept.parameters),
        run.budget,
        threads,
    )


def as_begun(plan: RunPlan, run: Run) -> RunPlan:
    """The plan with what its run came to when it was begun: budget, assignment, and the reference's answers.

    Another machine, or another number of threads, rounds otherwise, and may come to other ones.

    Args:
        plan: made anew of the run's recipe.
        run: the run.

    Raises:
        DataError: the data is normalised otherwise.
        InputError: the answers are missing or damaged.
    """
    run.check_inputs(plan.dataset)
    begun = replace(plan, budget=run.budget, assignment=run.assignment)
    if plan.recipe.labels != "reference":
        return begun
    dataset = run.with_answers(plan.dataset)
    train, validation = data.split(dataset.y, plan.recipe.validation, plan.recipe.seed)
    return replace(begun, dataset=dataset, train=train, validation=validation)


def groups_of(recipe: Recipe, dataset: Dataset, model: nn.Module) -> list[list[int]] | None:
    """The groups that the recipe puts the classes into; None where it does not group them.

    Raises:
        AssignmentError: there are more groups than classes, or the classes do not divide into them evenly.
        PluginError: no grouping of that name.
    """
    if recipe.groups is None:
        return None
    group: Group = plugins.find("pruning.grouping", recipe.grouping, "group")
    check_groups(dataset.n_classes, recipe.groups, uneven=recipe.uneven)
    return group(classes_seen(recipe, dataset, model), recipe.groups, recipe.seed)


def classes_seen(recipe: Recipe, dataset: Dataset, model: nn.Module) -> Classes:
    """The classes as the reference `model` sees them, which groupings go by."""
    train, validation = data.split(dataset.y, recipe.validation, recipe.seed)
    sample = some_of_each_class(dataset.y, train, recipe.profile_images, recipe.seed)
    return Classes(model, dataset, sample, validation)
