"""Make one network for some classes: profile what it is cut from, cut, give it a head, retrain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import heads
from pruning.activations import Profile, profile, some_of_each_class
from pruning.checkpoint import Network
from pruning.criteria import Criterion, Thresholds
from pruning.data import Labels
from pruning.heads import Head, Subnet, replace_output
from pruning.plan import Plan
from pruning.retrain import Loss, Schedule, autocast, fit, infer, use_bf16
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
from sensai_serve import plugins
from sensai_serve.preprocess import Floats

CERTAIN = 50.0
"""A logit so high that a label written with it is certain."""

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much it is in all."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


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
        dataset,
        batches=batches,
        loss=distillation(plan, head, stage.classes),
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


def distillation(plan: Plan, head: Head, classes: Sequence[int]) -> Loss:
    """The loss of a network for `classes`: against the reference's answers to the same views, and against the labels.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: both sides' logits are divided by a
    temperature, so that what the reference holds possible counts beside what it holds true. The reference's answers
    are turned into the head's own logits first, so that what is learnt are probabilities of the classes, comparable
    between workers.
    """
    weight, temperature, device = plan.recipe.distil, plan.recipe.temperature, plan.device
    one_hot = F.one_hot(torch.from_numpy(plan.dataset.y), plan.dataset.n_classes).float().to(device)
    hard = head.probabilities(head.own_logits(CERTAIN * one_hot, classes))  # [N, outputs]
    faster = use_bf16(plan.recipe.precision, plan.shape, device)
    reference = copy.deepcopy(plan.reference).eval()
    if len(plan.shape) == 3:
        reference.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(x: Tensor, logits: Tensor, indices: Labels) -> Tensor:
        total = logits.new_zeros(())
        if weight < 1:
            total = total + (1 - weight) * head.loss(logits, hard[indices])
        if weight > 0:
            with torch.no_grad(), autocast(device, enabled=faster):
                known = head.own_logits(reference(x).float(), classes)
            soft = head.probabilities(known / temperature)
            total = total + weight * temperature**2 * head.loss(logits / temperature, soft)
        return total

    return loss
