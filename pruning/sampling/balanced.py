"""``balanced``: in every iteration half of the images are of the worker's classes.

Source: Wang et al., "sensAI", MLSys 2021, section 3: without it a binary network sees nine negatives to a positive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pruning.data import Labels
from pruning.sampling import shuffled


def batches(
    y: Labels, indices: Labels, classes: Sequence[int], size: int, generator: np.random.Generator
) -> Iterator[Labels]:
    """Half positives, half negatives; uniform where half of the images or more are positives anyway, or none is."""
    sets = y.ndim == 2
    positive = y[indices][:, list(classes)].any(axis=1) if sets else np.isin(y[indices], list(classes))
    if positive.mean() >= 0.5 or not positive.any():
        yield from shuffled(indices, size, generator)
    ours = shuffled(indices[positive], size // 2, generator)
    others = shuffled(indices[~positive], size - size // 2, generator)
    for some, rest in zip(ours, others, strict=True):
        yield generator.permutation(np.concatenate([some, rest]))
