"""Which optimiser a network is trained with, and at which learning rate where nobody says one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pruning.recipe import Optimiser

SUITED = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)
"""Layers of networks that may learn nothing by stochastic gradient descent, as BERT does not: noise of their gradients
is heavy-tailed (Zhang et al., Why are adaptive methods good for attention models?, 2020:
https://arxiv.org/abs/1912.03194)."""
DECAY = 0.05
"""Weight decay of AdamW, in units of the learning rate."""


@dataclass(frozen=True)
class Rates:
    """Peak learning rates, by optimiser."""

    sgd: float
    adamw: float


FROM_SCRATCH = Rates(sgd=0.1, adamw=0.002)
"""Of a network with random weights."""
RETRAINING = Rates(sgd=0.01, adamw=0.001)
"""Of a network that was cut out of a trained one."""


def suited(model: nn.Module, asked: Optimiser) -> Literal["sgd", "adamw"]:
    """The optimiser for a network: what was asked for, or by ``auto`` AdamW where a layer is of `SUITED`."""
    if asked != "auto":
        return asked
    return "adamw" if any(isinstance(module, SUITED) for module in model.modules()) else "sgd"


def make_optimiser(
    model: nn.Module, kind: Literal["sgd", "adamw"], rate: float, *, sgd_decay: float, fused: bool
) -> torch.optim.Optimizer:
    """An optimiser of a network's weights, of which biases, scales and shifts do not decay.

    Args:
        model: the network.
        kind: which optimiser.
        rate: its learning rate.
        sgd_decay: weight decay of SGD; AdamW's is `DECAY`.
        fused: whether one kernel updates all weights, on a card.
    """
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    decay = sgd_decay if kind == "sgd" else DECAY
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=fused or None)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused or None)
