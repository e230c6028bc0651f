"""``random``: groups drawn by chance, to compare with."""

from __future__ import annotations

import numpy as np

from pruning.grouping import Classes, check_groups, from_assignment


def group(classes: Classes, n_groups: int, seed: int) -> list[list[int]]:
    """Groups of equal size, to within one; of `classes` only their number matters."""
    check_groups(classes.n_classes, n_groups)
    order = np.random.default_rng(seed).permutation(classes.n_classes)
    group_of = np.empty(classes.n_classes, np.int64)
    group_of[order] = np.arange(classes.n_classes) % n_groups
    return from_assignment(group_of, n_groups)
