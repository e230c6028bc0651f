"""The networks that smaller ones are cut from, and what is known of them: profile, blocks, channel groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from pruning.criteria import Doubles
from pruning.cutting.blocks import block_importance, find_blocks, remove_blocks, trace
from pruning.cutting.channels import ChannelGroup, find_channel_groups, kept_outputs
from pruning.cutting.cut import Cut, apply_cut
from pruning.cutting.profile import Profile, profile, some_of_each_class
from pruning.cutting.ratios import cut_to_ratio, search_ratio
from pruning.cutting.size import Size, measure
from pruning.data import Labels
from pruning.planning.plan import RunPlan
from sensai_serve.errors import ModelError
from sensai_serve.progress import OnProgress, silent


@dataclass(frozen=True)
class Trimmed:
    """A source network without some of its residual blocks; channels are then cut out of it."""

    network: nn.Module
    removed: tuple[str, ...]
    """Names of the blocks that it lacks, of those that the source has."""
    groups: list[ChannelGroup]


@dataclass(frozen=True)
class PruningRatio:
    """The fraction of every channel group that is cut, and how the rest is rounded."""

    ratio: float
    """Fraction of the group's channels that are cut, 0 to below 1."""
    multiple: int
    """The number of channels that stay is rounded down to a multiple of this."""


@dataclass(frozen=True)
class SourceNetwork:
    """A network that smaller ones are cut from: the reference, or a compact network recovered from it.

    What is found out about it (its profile, the importance of its blocks, pruning ratios) is kept.
    """

    plan: RunPlan
    network: nn.Module
    """Gives logits [N, C]."""
    cut: Cut
    """The cut that made it from the reference."""
    removed: tuple[str, ...] = ()
    """Blocks of the reference that it lacks."""
    on_progress: OnProgress = silent
    reference: SourceNetwork | None = None
    """The reference that it was cut from; None: it is the reference."""
    _trimmed: dict[tuple[str, ...], Trimmed] = field(default_factory=dict)
    _ratios: dict[tuple[float, tuple[str, ...], int], PruningRatio] = field(default_factory=dict)

    @cached_property
    def kept_outputs(self) -> dict[str, list[int]]:
        """The reference's output channels that are left, by layer; layers that lost none may be missing."""
        if self.reference is None:
            return {}
        return kept_outputs(self.reference.without(self.removed).groups, self.cut)

    @cached_property
    def profile(self) -> Profile:
        """Statistics of the classes' training images in the network; computed when first asked for."""
        return profile(
            self.network,
            self.plan.dataset,
            self._profiled,
            theta1=self.plan.recipe.theta1,
            on_step=self._steps("profile recovered" if self.reference else "profile"),
        )

    @cached_property
    def block_importance(self) -> Mapping[str, Doubles]:
        """The change of the loss for each class [C] without a block, by the name of each removable block."""
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
        """Names of the least important blocks, to drop so that a fraction `depth` of the reference's are gone.

        Args:
            depth: fraction of the reference's removable blocks that are gone afterwards, in this network and before.
            classes: the classes to which the blocks are least important.

        Raises:
            ModelError: the reference has none, or cannot be traced.
        """
        if depth == 0:
            return ()
        n_blocks = len(find_blocks(trace(self.plan.uncut), self.plan.shape))
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
        """The network without the blocks of those names."""
        if removed not in self._trimmed:
            shape = self.plan.shape
            network = remove_blocks(self.network, removed, shape) if removed else self.network
            self._trimmed[removed] = Trimmed(network, removed, find_channel_groups(network, shape))
        return self._trimmed[removed]

    def pruning_ratio(self, amount: float, trimmed: Trimmed, multiple: int) -> PruningRatio:
        """The part of every channel group that has to be cut to bring the network to `amount` of the recipe's target.

        Args:
            amount: fraction of the reference's MACs or parameters to keep, or of each group's channels to cut.
            trimmed: what is cut.
            multiple: channels that stay are a multiple of it, or of a half, a quarter, ... of it where that cannot be.

        Raises:
            ModelError: the budget is below the smallest network there is.
        """
        key = (amount, trimmed.removed, multiple)
        if key not in self._ratios:
            self._ratios[key] = self._search(amount, trimmed, multiple)
        return self._ratios[key]

    def _search(self, amount: float, trimmed: Trimmed, multiple: int) -> PruningRatio:
        target, whole = self.plan.budget.target, self.plan.size
        if target == "channels":
            return PruningRatio(amount, multiple)

        sizes: dict[tuple[int, ...], Size] = {}  # thin networks have fewer cuts than the search takes steps

        def size_at(ratio: float) -> int:
            cut = cut_to_ratio(trimmed.groups, equal_importance(trimmed.groups), ratio, multiple=multiple)
            widths = tuple(map(len, cut.values()))
            if widths not in sizes:
                sizes[widths] = measure(apply_cut(trimmed.network, cut, self.plan.shape), self.plan.shape)
            return sizes[widths].parameters if target == "parameters" else sizes[widths].macs

        reference = whole.parameters if target == "parameters" else whole.macs
        budget = int(amount * reference)
        unit = "parameters" if target == "parameters" else "MACs"
        while True:
            try:
                return PruningRatio(search_ratio(size_at, budget, unit=unit, whole=reference), multiple)
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


def reference_source(plan: RunPlan, on_progress: OnProgress) -> SourceNetwork:
    """The plan's reference as a network to cut from."""
    return SourceNetwork(plan, plan.uncut, {}, on_progress=on_progress)


def equal_importance(groups: Sequence[ChannelGroup]) -> dict[str, Doubles]:
    """Zero for every channel, by group: for cuts of which only the size matters."""
    return {group.layer: np.zeros(group.channels) for group in groups}
