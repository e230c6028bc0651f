"""Decide which channels of a network stay for some classes: profile it, rank its channels, cut to the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from pruning.activations import Profile, profile, some_of_each_class
from pruning.criteria import Criterion, Thresholds
from pruning.executors import OnProgress
from pruning.plan import Plan
from pruning.surgery import (
    Cut,
    Size,
    Unit,
    apply_cut,
    cut_below,
    cut_share,
    find_units,
    measure,
    search_share,
    unit_importance,
)
from sensai_serve import plugins


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Base:
    """What networks are cut from: the reference, or the compact network recovered from it. Gives logits [N, C]."""

    plan: Plan
    network: nn.Module
    cut: Cut
    """That made it from the reference."""
    on_progress: OnProgress = silent
    _shares: dict[float, float] = field(default_factory=dict)

    @cached_property
    def units(self) -> list[Unit]:
        """What can be cut in it."""
        return find_units(self.network, self.plan.shape)

    @cached_property
    def profile(self) -> Profile:
        """What the classes' training images do in it; taken when first asked for."""
        plan, recipe = self.plan, self.plan.recipe
        indices = some_of_each_class(plan.dataset.y, plan.train, recipe.profile_images, recipe.seed)
        stage = "profile recovered" if self.cut else "profile"
        return profile(
            self.network,
            plan.dataset,
            indices,
            theta1=recipe.theta1,
            on_step=lambda done, total: self.on_progress(stage, done, total),
        )

    def share(self, amount: float) -> float:
        """The share of every unit's channels whose loss brings the network to `amount` of the recipe's target.

        Raises:
            ModelError: the budget is below the smallest network there is.
        """
        if amount not in self._shares:
            self._shares[amount] = self._search(amount)
        return self._shares[amount]

    def _search(self, amount: float) -> float:
        target, reference = self.plan.recipe.target, self.plan.size
        if target == "channels":
            return amount
        anything = {unit.layer: np.zeros(unit.channels) for unit in self.units}  # which channels go, sizes do not mind

        def size_at(share: float) -> Size:
            cut = cut_share(self.units, anything, share)
            return measure(apply_cut(self.network, cut, self.plan.shape), self.plan.shape)

        if target == "parameters":
            return search_share(lambda share: size_at(share).parameters, int(amount * reference.parameters))
        return search_share(lambda share: size_at(share).macs, int(amount * reference.macs))


def choose_cut(base: Base, amount: float | None, classes: Sequence[int]) -> Cut:
    """The channels of `base` that stay for `classes`, as the recipe's criterion and target say.

    Args:
        base: what is cut.
        amount: of the recipe's target; None cuts nothing.
        classes: whose images count.

    Raises:
        ModelError: a layer would lose all its channels, or the budget is below the smallest network there is.
    """
    if amount is None:
        return {unit.layer: tuple(range(unit.channels)) for unit in base.units}
    recipe = base.plan.recipe
    criterion: Criterion = plugins.find("pruning.criteria", recipe.criterion, "importance")
    thresholds = Thresholds(recipe.theta1, recipe.theta2)
    importance = {
        unit.layer: unit_importance(unit, lambda name: criterion(base.profile.statistics(name, classes), thresholds))
        for unit in base.units
    }
    if recipe.target == "threshold":
        return cut_below(base.units, importance, amount)
    return cut_share(base.units, importance, base.share(amount))
