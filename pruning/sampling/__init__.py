"""Samplings decide which training images the next iteration sees.

A new way is one new file here with a function ``batches(y, indices, classes, size, generator)`` that yields index
arrays [size] for ever. ``y`` is [N], or [N, C] of 0 and 1 where examples have sets of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pruning.data import Labels

Sampling = Callable[[Labels, Labels, Sequence[int], int, np.random.Generator], Iterator[Labels]]


def shuffled(indices: Labels, size: int, generator: np.random.Generator) -> Iterator[Labels]:
    """Draws of `size`, each index once before any comes a second time."""
    left = np.empty(0, np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, generator.permutation(indices)])
        yield left[:size]
        left = left[size:]
