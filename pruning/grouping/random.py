"""``random``: groups drawn by chance, to compare with."""

from __future__ import annotations

import numpy as np

from pruning.grouping import Features, check_groups, from_assignment


def group(features: Features, n_groups: int, seed: int) -> list[list[int]]:
    """Groups of equal size, to within one; of `features` [C, F] only the number of classes matters."""
    check_groups(len(features), n_groups)
    order = np.random.default_rng(seed).permutation(len(features))
    group_of = np.empty(len(features), np.int64)
    group_of[order] = np.arange(len(features)) % n_groups
    return from_assignment(group_of, n_groups)
