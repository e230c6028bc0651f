"""Chooses the blocks and channels of a network that stay for some classes, as the recipe's criterion and target say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pruning.criteria import Criterion, Doubles, Thresholds
from pruning.cutting.channels import ChannelGroup, alike_in_parts
from pruning.cutting.cut import Cut
from pruning.cutting.evidence import gather_evidence
from pruning.cutting.ratios import cut_below_threshold, cut_to_ratio
from pruning.selection.source import SourceNetwork, Trimmed
from sensai_serve import plugins
from sensai_serve.errors import PluginError


def choose_cut(
    source: SourceNetwork, amount: float | None, depth: float, classes: Sequence[int], *, exact: bool = False
) -> tuple[Trimmed, Cut]:
    """The blocks and channels of a network that stay for some classes.

    Args:
        source: what is cut.
        amount: how much, in the recipe's target; None cuts no channels.
        depth: fraction of the reference's removable blocks that are gone afterwards.
        classes: the classes whose images count.
        exact: cut to any number of channels, whatever multiple the recipe asks for.

    Raises:
        ModelError: there is no block to drop, a layer would lose all its channels, or the budget is below the smallest
            network there is.
        PluginError: there is no such criterion, or it gives no importance.

    Returns:
        The source without the blocks that go, and the channels of it that stay.
    """
    trimmed = source.without(source.dispensable(depth, classes))
    groups, recipe = trimmed.groups, source.plan.recipe
    if amount is None:
        return trimmed, {group.layer: tuple(range(group.channels)) for group in groups}
    criterion: Criterion = plugins.find("pruning.criteria", recipe.criterion, "importance")
    importance = {group.layer: _importance(criterion, source, trimmed, group, classes) for group in groups}
    if source.plan.budget.target == "threshold":
        return trimmed, cut_below_threshold(groups, importance, amount)
    found = source.pruning_ratio(amount, trimmed, 1 if exact else recipe.multiple)
    return trimmed, cut_to_ratio(groups, importance, found.ratio, multiple=found.multiple)


def _importance(
    criterion: Criterion, source: SourceNetwork, trimmed: Trimmed, group: ChannelGroup, classes: Sequence[int]
) -> Doubles:
    """Importance [channels] of a group's channels for some classes."""
    recipe = source.plan.recipe
    evidence = gather_evidence(group, trimmed.network, lambda layer: source.profile.statistics(layer, classes))
    importance = np.asarray(criterion(evidence, Thresholds(recipe.theta1, recipe.theta2)), np.float64)
    right = importance.shape == (group.channels,)
    if not right or not np.isfinite(importance).all():
        shown = "NaN or infinity" if right else f"shape {list(importance.shape)}"
        raise PluginError(
            f"criterion {recipe.criterion} gives {shown} for {group.layer}, expected {group.channels} finite numbers, "
            "one for each channel"
        )
    return alike_in_parts(group, importance)
