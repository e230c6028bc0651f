"""``softmax_others``: one of the worker's classes, or "others", which is dropped at the output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.heads import against_others, columns, others


class SoftmaxOthers:
    """A classifier over the worker's classes and "others", the last logit; trained with cross-entropy."""

    def own_logits(self, logits: Tensor, classes: Sequence[int]) -> Tensor:
        """The logits of the classes, and the log of the summed exponentials of all others'."""
        return torch.cat([columns(logits, classes), others(logits, classes).logsumexp(dim=1, keepdim=True)], dim=1)

    def rows(self, weight: Tensor, bias: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The reference's rows; for "others" the mean of the rows of the classes that are left."""
        chosen = list(classes)
        left = [c for c in range(len(weight)) if c not in chosen]
        if left:
            others_weight, others_bias = weight[left].mean(dim=0), bias[left].mean() + math.log(len(left))
        else:  # nothing is ever "others": start it as improbable
            others_weight, others_bias = torch.zeros_like(weight[0]), bias.min() - 5
        return torch.cat([weight[chosen], others_weight[None]]), torch.cat([bias[chosen], others_bias[None]])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class and of "others", [N, k + 1]; they sum to 1."""
        return logits.softmax(dim=1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy against probabilities."""
        return F.cross_entropy(logits, targets)

    def log_odds(self, logits: Tensor) -> Tensor:
        """Each class against all other outputs."""
        return against_others(logits)[:, :-1]

    def scores(self, logits: Tensor) -> Tensor:
        """Probability of each class, without "others"."""
        return self.probabilities(logits)[:, :-1]


head = SoftmaxOthers()
