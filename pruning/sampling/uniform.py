"""``uniform``: every training image as often as any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pruning.data import Labels
from pruning.sampling import shuffled


def batches(
    y: Labels, indices: Labels, classes: Sequence[int], size: int, generator: np.random.Generator
) -> Iterator[Labels]:
    """Batches over all of `indices`; `y` [N] and `classes` do not matter."""
    return shuffled(indices, size, generator)
