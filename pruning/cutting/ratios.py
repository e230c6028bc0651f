"""Decides how many channels are cut: a fraction of every group, all below a threshold, or what a budget asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from pruning.criteria import Doubles
from pruning.cutting.channels import ChannelGroup
from pruning.cutting.cut import Cut
from sensai_serve.errors import ModelError


def cut_to_ratio(
    groups: Sequence[ChannelGroup], importance: Mapping[str, Doubles], ratio: float, *, multiple: int = 1
) -> Cut:
    """Cut the least important channels of every group, the same fraction of each of its sections.

    A section is what the same layers make and read: where branches are concatenated and then added to another layer's
    output, one group has channels of several layers, and each of these keeps its share.

    Args:
        groups: the network's channel groups.
        importance: importance [channels] of each group's channels, by the group's name.
        ratio: fraction of every group's channels to cut (the pruning ratio), 0 to below 1.
        multiple: the number of channels that stay is rounded down to a multiple of this, but to at least one, in groups
            that have as many.

    Raises:
        ModelError: a layer would lose all its channels.
    """
    kept = {}
    for group in groups:
        per_part = group.channels // group.parts
        if per_part - round(per_part * ratio) < group.block:
            raise ModelError(
                f"cut: layer {group.layer} would lose all {group.channels} channels at a pruning ratio of {ratio:.3g}, "
                "expected a smaller cut"
            )
        stay = []
        for section in _sections(group):
            keep = max(len(section) - round(len(section) * ratio), 1)
            unit = multiple if group.block == 1 else group.block
            if keep < len(section) >= unit:
                keep = max(keep // unit, 1) * unit  # down: two cuts in a row then leave no more than one
            stay.append(section[np.argsort(-importance[group.layer][section], kind="stable")[:keep]])
        kept[group.layer] = _in_all_parts(np.sort(np.concatenate(stay)), group)
    return kept


def cut_below_threshold(groups: Sequence[ChannelGroup], importance: Mapping[str, Doubles], threshold: float) -> Cut:
    """Cut every channel whose importance is below `threshold`.

    Args:
        groups: the network's channel groups.
        importance: importance [channels] of each group's channels, by the group's name.
        threshold: the least importance that stays.

    Raises:
        ModelError: a layer would lose all its channels.
    """
    kept = {}
    for group in groups:
        keep = np.flatnonzero(importance[group.layer][: group.channels // group.parts] >= threshold)
        if not len(keep):
            raise ModelError(
                f"cut: layer {group.layer} would lose all {group.channels} channels, none has an importance of "
                f"{threshold:.3g} (its highest is {importance[group.layer].max():.3g}), expected a lower threshold"
            )
        kept[group.layer] = _in_all_parts(keep, group)
        for member in group.producers:
            if not np.isin(member.channels, kept[group.layer]).any():
                raise ModelError(
                    f"cut: layer {member.layer} would lose all {len(np.unique(member.channels))} channels, none has an "
                    f"importance of {threshold:.3g}, expected a lower threshold"
                )
    return kept


def search_ratio(
    size_at: Callable[[float], float],
    budget: float,
    *,
    steps: int = 12,
    at_least: float = 0.0,
    unit: str = "MACs",
    whole: float = 0,
) -> float:
    """The smallest pruning ratio whose network is within `budget`, by bisection.

    Args:
        size_at: size (MACs, parameters, microseconds) of the network with that fraction of every group's channels cut.
        budget: the largest size that is allowed.
        steps: halvings of the interval.
        at_least: the smallest ratio to look at.
        unit: what sizes are counted in, for the message.
        whole: the size of the reference, for the message; 0 where budgets are no fractions of it.

    Raises:
        ModelError: even the largest cut is above the budget; says the smallest size that can be reached.
    """
    if (smallest := size_at(at_least)) <= budget:
        return at_least
    low, high = at_least, at_least
    for ratio in (numerator / 32 for numerator in range(31, 0, -1) if numerator / 32 > at_least):
        with suppress(ModelError):  # a layer would vanish
            high, smallest = ratio, size_at(ratio)
            break
    if smallest > budget:
        part = f" ({math.ceil(1000 * smallest / whole) / 1000:g} of the reference's)" if whole else ""
        raise ModelError(
            f"cut: the smallest network that can be reached has {_figure(smallest)} {unit}{part}, expected at most "
            f"{_figure(budget)}"
        )
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if size_at(middle) <= budget else (middle, high)
    return high


def _figure(size: float) -> str:
    """A size for people: whole from ten on, else to two digits."""
    return f"{size:,.0f}" if size >= 10 else f"{size:.2g}"


def _sections(group: ChannelGroup) -> list[npt.NDArray[np.int64]]:
    """Channels of the first part of a group, those together that are of the same layers in every part."""
    per_part = group.channels // group.parts
    members = [*group.producers, *group.consumers]
    covered = np.zeros((len(members), group.channels), np.bool_)
    for row, member in zip(covered, members, strict=True):
        row[member.channels] = True
    pattern = covered.reshape(-1, per_part)  # [members x parts, channels of a part]
    _, which = np.unique(pattern, axis=1, return_inverse=True)
    return [np.flatnonzero(which == section) for section in range(which.max() + 1)]


def _in_all_parts(kept: npt.NDArray[np.int64], group: ChannelGroup) -> tuple[int, ...]:
    """Channels that stay in the first part of a group, as channels of the group: the same in every part."""
    per_part = group.channels // group.parts
    return tuple(int(part * per_part + i) for part in range(group.parts) for i in kept)
