"""``confusion``: classes that the reference takes for one another share a subnet.

What is hard then happens inside one network, which learns it from both sides; between networks, whose scores were never
trained against each other, only what is easy is left to tell apart. `confusion_apart` does the opposite, to compare
with.

Source of the exchange: Kernighan and Lin, "An Efficient Heuristic Procedure for Partitioning Graphs", 1970.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pruning.grouping import Classes, Features, check_groups, from_assignment

STARTS = 8
"""Number of random partitions that the search starts from; the best result is kept."""


def group(classes: Classes, n_groups: int, seed: int) -> list[list[int]]:
    """Groups of equal size, to within one, with as much of the confusion inside them as exchanges reach."""
    check_groups(classes.n_classes, n_groups)
    return together(classes.confusion, n_groups, seed)


def together(confusion: Features, n_groups: int, seed: int) -> list[list[int]]:
    """Balanced groups with the largest sum of `confusion` between members.

    Args:
        confusion: [C, C] what is gained where two classes share a group; the diagonal does not count.
        n_groups: G, 1 to C.
        seed: seed of the partitions that the search starts from.
    """
    gain = confusion + confusion.T
    np.fill_diagonal(gain, 0.0)
    random = np.random.default_rng(seed)
    ends = [_exchange(gain, random.permutation(len(gain)) % n_groups) for _ in range(STARTS)]
    best = max(ends, key=lambda group_of: float(gain[group_of[:, None] == group_of].sum()))
    return from_assignment(best, n_groups)


def _exchange(gain: Features, group_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Exchange the two classes that gain most by it until no two gain."""
    group_of = group_of.copy()
    n_classes = len(gain)
    while True:
        member = np.eye(group_of.max() + 1)[group_of]  # [C, G]
        with_group = gain @ member  # [C, G]: what class c has in common with group g
        own = with_group[np.arange(n_classes), group_of]
        into = with_group[:, group_of]  # [C, C]: class i with the group of class j
        gained = into + into.T - own[:, None] - own - 2 * gain
        gained[group_of[:, None] == group_of] = 0.0
        i, j = divmod(int(gained.argmax()), n_classes)
        if gained[i, j] <= 1e-12:
            return group_of
        group_of[i], group_of[j] = group_of[j], group_of[i]
