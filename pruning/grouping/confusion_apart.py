"""``confusion_apart``: classes that the reference takes for one another never share a subnet, as far as that goes.

Each network then tells its classes apart easily, and what is hard is left to the merge: to compare `confusion` with.
"""

from __future__ import annotations

from pruning.grouping import Classes, check_groups
from pruning.grouping.confusion import together


def group(classes: Classes, n_groups: int, seed: int) -> list[list[int]]:
    """Groups of equal size, to within one, with as little of the confusion inside them as exchanges reach."""
    check_groups(classes.n_classes, n_groups)
    return together(-classes.confusion, n_groups, seed)
