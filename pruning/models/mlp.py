"""``mlp``: a small multilayer perceptron for tables of sensor readings."""

from __future__ import annotations

import math

from torch import nn


def build(name: str, n_classes: int, input_shape: tuple[int, ...]) -> nn.Module | None:
    """``mlp`` on inputs of any shape, flattened; two hidden layers of 64."""
    if name != "mlp":
        return None
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, n_classes),
    )
