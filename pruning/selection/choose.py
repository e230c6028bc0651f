"""Decide what of a network stays for some classes: profile it, rank its blocks and channels, cut to the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from pruning.criteria import Criterion, Floats, Thresholds
from pruning.cutting.blocks import block_importance, find_blocks, remove_blocks, trace
from pruning.cutting.channels import Cut, Unit, apply_cut, find_units, kept_outputs, measure, unit_importance
from pruning.cutting.profile import Profile, profile, some_of_each_class
from pruning.cutting.ratios import cut_below, cut_share, search_share
from pruning.data import Labels
from pruning.planning.plan import Plan
from pruning.progress import OnProgress, silent
from sensai_serve import plugins
from sensai_serve.errors import ModelError


@dataclass(frozen=True)
class Trimmed:
    """A base without some of its residual blocks: what channels are then cut out of."""

    network: nn.Module
    removed: tuple[str, ...]
    units: list[Unit]


@dataclass(frozen=True)
class Share:
    """How much of every unit goes."""

    of_channels: float
    multiple: int
    """That what stays is rounded to."""


@dataclass(frozen=True)
class Base:
    """What networks are cut from: the reference, or the compact network recovered from it. Gives logits [N, C]."""

    plan: Plan
    network: nn.Module
    cut: Cut
    """That made it from the reference."""
    removed: tuple[str, ...] = ()
    """Blocks of the reference that it lacks."""
    on_progress: OnProgress = silent
    reference: Base | None = None
    """The reference's, which this was cut from; None: this is it."""
    _trimmed: dict[tuple[str, ...], Trimmed] = field(default_factory=dict)
    _shares: dict[tuple[float, tuple[str, ...], int], Share] = field(default_factory=dict)

    @cached_property
    def kept_outputs(self) -> dict[str, list[int]]:
        """By layer, which of the reference's output channels are left in it; layers that lost none may be missing."""
        if self.reference is None:
            return {}
        return kept_outputs(self.reference.without(self.removed).units, self.cut)

    @cached_property
    def profile(self) -> Profile:
        """What the classes' training images do in it; taken when first asked for."""
        return profile(
            self.network,
            self.plan.dataset,
            self._profiled,
            theta1=self.plan.recipe.theta1,
            on_step=self._steps("profile recovered" if self.reference else "profile"),
        )

    @cached_property
    def block_importance(self) -> Mapping[str, Floats]:
        """For each block that could be dropped and class [C], what the loss would change by."""
        traced = trace(self.network)
        blocks = find_blocks(traced, self.plan.shape)
        return block_importance(
            traced,
            blocks,
            self.plan.dataset,
            self._profiled,
            on_step=self._steps("profile blocks of recovered" if self.reference else "profile blocks"),
        )

    def dispensable(self, depth: float, classes: Sequence[int]) -> tuple[str, ...]:
        """Names of the blocks to drop so that a fraction `depth` of the reference's are gone: the least important ones.

        Raises:
            ModelError: the reference has none, or cannot be traced.
        """
        if depth == 0:
            return ()
        n_blocks = len(find_blocks(trace(self.plan.reference), self.plan.shape))
        if not n_blocks:
            raise ModelError(
                "model: has no residual block around an identity skip that could be dropped, expected no --depth"
            )
        count = round(depth * n_blocks) - len(self.removed)
        if count <= 0:
            return ()
        importance = {name: float(of_class[list(classes)].mean()) for name, of_class in self.block_importance.items()}
        return tuple(sorted(importance, key=importance.__getitem__)[:count])

    def without(self, removed: tuple[str, ...]) -> Trimmed:
        """This without those blocks."""
        if removed not in self._trimmed:
            shape = self.plan.shape
            network = remove_blocks(self.network, removed, shape) if removed else self.network
            self._trimmed[removed] = Trimmed(network, removed, find_units(network, shape))
        return self._trimmed[removed]

    def share(self, amount: float, trimmed: Trimmed, multiple: int) -> Share:
        """How much of every unit has to go to bring the network to `amount` of the recipe's target.

        Multiples of `multiple` channels stay, or of less where that cannot be.

        Raises:
            ModelError: the budget is below the smallest network there is.
        """
        key = (amount, trimmed.removed, multiple)
        if key not in self._shares:
            self._shares[key] = self._search(amount, trimmed, multiple)
        return self._shares[key]

    def _search(self, amount: float, trimmed: Trimmed, multiple: int) -> Share:
        target, whole = self.plan.budget.target, self.plan.size
        if target == "channels":
            return Share(amount, multiple)

        def size_at(share: float) -> int:
            cut = cut_share(trimmed.units, anything(trimmed.units), share, multiple=multiple)
            size = measure(apply_cut(trimmed.network, cut, self.plan.shape), self.plan.shape)
            return size.parameters if target == "parameters" else size.macs

        budget = int(amount * (whole.parameters if target == "parameters" else whole.macs))
        unit = "parameters" if target == "parameters" else "MACs"
        while True:
            try:
                return Share(search_share(size_at, budget, unit=unit), multiple)
            except ModelError:
                if multiple == 1:
                    raise
                multiple //= 2  # a thin network does not get that small in whole multiples

    @cached_property
    def _profiled(self) -> Labels:
        recipe = self.plan.recipe
        return some_of_each_class(self.plan.dataset.y, self.plan.train, recipe.profile_images, recipe.seed)

    def _steps(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.on_progress(stage, done, total)


def reference_base(plan: Plan, on_progress: OnProgress) -> Base:
    """The plan's reference as what networks are cut from."""
    return Base(plan, plan.reference, {}, on_progress=on_progress)


def choose_cut(
    base: Base, amount: float | None, depth: float, classes: Sequence[int], *, exact: bool = False
) -> tuple[Trimmed, Cut]:
    """The blocks and channels of `base` that stay for `classes`, as the recipe's criterion and target say.

    Args:
        base: what is cut.
        amount: of the recipe's target; None cuts no channels.
        depth: fraction of the reference's removable blocks that are gone afterwards.
        classes: whose images count.
        exact: to any number of channels, whatever multiple the recipe asks for.

    Raises:
        ModelError: there is no block to drop, a layer would lose all its channels, or the budget is below the smallest
            network there is.

    Returns:
        The base without the blocks that go, and the channels of it that stay.
    """
    trimmed = base.without(base.dispensable(depth, classes))
    units, recipe = trimmed.units, base.plan.recipe
    if amount is None:
        return trimmed, {unit.layer: tuple(range(unit.channels)) for unit in units}
    criterion: Criterion = plugins.find("pruning.criteria", recipe.criterion, "importance")
    thresholds = Thresholds(recipe.theta1, recipe.theta2)
    importance = {
        unit.layer: unit_importance(unit, lambda name: criterion(base.profile.statistics(name, classes), thresholds))
        for unit in units
    }
    if base.plan.budget.target == "threshold":
        return trimmed, cut_below(units, importance, amount)
    share = base.share(amount, trimmed, 1 if exact else recipe.multiple)
    return trimmed, cut_share(units, importance, share.of_channels, multiple=share.multiple)


def anything(units: Sequence[Unit]) -> dict[str, Floats]:
    """Importance where it does not matter which channels go, only how many."""
    return {unit.layer: np.zeros(unit.channels) for unit in units}
