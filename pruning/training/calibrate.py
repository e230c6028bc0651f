"""Calibrates a network: its scores become as confident as they are right, on images that it was not trained on.

Workers are trained apart and their scores are compared in the merge, so all should mean the same.

Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2 (temperature scaling),
https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pruning.heads import Head

RANGE = 20.0
"""The largest factor that logits are multiplied or divided by."""
HALVINGS = 40
PRIOR = 1.0
"""Standard deviation of the prior on the factor's logarithm: few images, all of them right, must not make a network
infinitely confident."""


def fit_scale(head: Head, logits: Tensor, targets: Tensor) -> float:
    """The factor, one over the temperature, that minimises the loss of the logits (and of the prior).

    Args:
        head: the head whose loss is minimised.
        logits: [V, outputs] of images that the network was not trained on.
        targets: [V, outputs], their labels as the head's probabilities.

    Returns:
        A factor between 1/20 and 20.
    """
    logits, targets = logits.double(), targets.double()

    def slope(log_scale: float) -> float:
        at = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
        total = len(logits) * head.loss(logits * at.exp(), targets) + (at / PRIOR) ** 2 / 2
        return torch.autograd.grad(total, at)[0].item()

    low, high = -math.log(RANGE), math.log(RANGE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp((low + high) / 2)


@torch.no_grad()
def fold_scale(layer: nn.Module, scale: float) -> None:
    """Multiply the outputs of an output layer by `scale`, in its own weights: the exported graph stays the same."""
    for parameter in layer.parameters():
        parameter.mul_(scale)
