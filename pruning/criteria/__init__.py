"""Pruning criteria: how much a channel matters to some classes.

A new criterion is one new file here with a function ``importance(statistics, thresholds) -> [channels]``; channels of
low importance go first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """What the images of some classes do on the channels that feed one layer; each [channels], means over images."""

    sparsity: Floats
    """Fraction of activations whose magnitude is below theta1."""
    zeros: Floats
    """Fraction of activations at or below 0."""
    magnitude: Floats
    """Mean |activation|."""
    taylor: Floats
    """Mean |sum over positions of activation x gradient of the loss|: what the loss would change by without it."""


@dataclass(frozen=True)
class Thresholds:
    """Of the hybrid criterion."""

    theta1: float = 0.01
    """An activation below this counts as none. It is applied when the statistics are taken."""
    theta2: float = 1.0
    """A channel whose mean |activation| is above this stays, however rarely it is active."""


Criterion = Callable[[Statistics, Thresholds], Floats]
