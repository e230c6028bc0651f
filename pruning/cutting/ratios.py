"""How many channels go: the least important share of every unit, all below a threshold, or what a budget asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from pruning.criteria import Floats
from pruning.cutting.channels import Cut, Unit
from sensai_serve.errors import ModelError


def cut_share(units: Sequence[Unit], importance: Mapping[str, Floats], share: float, *, multiple: int = 1) -> Cut:
    """Cut the least important `share` (0 to below 1) of the channels of every unit.

    Args:
        units: of the network.
        importance: of each unit's channels.
        share: of every unit's channels.
        multiple: of channels that stay, in units that have that many: rounded down, but at least one.

    Raises:
        ModelError: a layer would lose all its channels.
    """
    kept = {}
    for unit in units:
        per_block = unit.channels // unit.blocks
        keep = per_block - round(per_block * share)
        if keep < 1:
            raise ModelError(
                f"cut: layer {unit.layer} would lose all {unit.channels} channels at a share of {share:.3g}, "
                "expected a smaller cut"
            )
        if keep < per_block >= multiple:
            keep = max(keep // multiple, 1) * multiple  # down: two cuts in a row then leave no more than one
        order = np.argsort(-importance[unit.layer][:per_block], kind="stable")[:keep]
        kept[unit.layer] = _spread(np.sort(order), unit)
    return kept


def cut_below(units: Sequence[Unit], importance: Mapping[str, Floats], threshold: float) -> Cut:
    """Cut every channel whose importance is below `threshold`.

    Raises:
        ModelError: a layer would lose all its channels.
    """
    kept = {}
    for unit in units:
        keep = np.flatnonzero(importance[unit.layer][: unit.channels // unit.blocks] >= threshold)
        if not len(keep):
            raise ModelError(
                f"cut: layer {unit.layer} would lose all {unit.channels} channels, none has an importance of "
                f"{threshold:.3g} (its highest is {importance[unit.layer].max():.3g}), expected a lower threshold"
            )
        kept[unit.layer] = _spread(keep, unit)
    return kept


def search_share(
    size_at: Callable[[float], float], budget: float, *, steps: int = 12, at_least: float = 0.0, unit: str = "MACs"
) -> float:
    """The smallest share to cut whose network is within `budget`, by bisection.

    Args:
        size_at: size (MACs, parameters, microseconds) of the network with that share of channels cut.
        budget: the most that is allowed.
        steps: halvings of the interval.
        at_least: the smallest share to look at.
        unit: of the size.

    Raises:
        ModelError: even the largest cut is above the budget; says the smallest size that can be reached.
    """
    if (smallest := size_at(at_least)) <= budget:
        return at_least
    low, high = at_least, at_least
    for share in (numerator / 32 for numerator in range(31, 0, -1) if numerator / 32 > at_least):
        with suppress(ModelError):  # a layer would vanish
            high, smallest = share, size_at(share)
            break
    if smallest > budget:
        raise ModelError(
            f"cut: the smallest network that can be reached has {smallest:,.0f} {unit}, expected at most {budget:,.0f}"
        )
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if size_at(middle) <= budget else (middle, high)
    return high


def _spread(kept: npt.NDArray[np.int64], unit: Unit) -> tuple[int, ...]:
    per_block = unit.channels // unit.blocks
    return tuple(int(block * per_block + i) for block in range(unit.blocks) for i in kept)
