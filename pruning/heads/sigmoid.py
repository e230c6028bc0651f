"""``sigmoid``: an independent yes or no for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.heads import against_others, columns


class Sigmoid:
    """A binary classifier for each class, trained with binary cross-entropy."""

    @property
    def of_sets(self) -> Sigmoid:
        """The head for examples with sets of labels."""
        return SigmoidOfSets()

    def own_logits(self, logits: Tensor, classes: Sequence[int]) -> Tensor:
        """Log odds of each class against all others."""
        return columns(against_others(logits), classes)

    def rows(self, weight: Tensor, bias: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Each class's row against the mean of all other rows: a first approximation of its log odds under softmax."""
        n_classes = len(weight)
        if n_classes == 1:
            return weight, bias
        chosen = list(classes)
        others_weight = (weight.sum(dim=0) - weight[chosen]) / (n_classes - 1)
        others_bias = (bias.sum() - bias[chosen]) / (n_classes - 1) + math.log(n_classes - 1)
        return weight[chosen] - others_weight, bias[chosen] - others_bias

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class, independent of the others'; [N, k]."""
        return torch.sigmoid(logits)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, summed over the classes of an example, mean over examples."""
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)

    def log_odds(self, logits: Tensor) -> Tensor:
        """The logits themselves."""
        return logits

    def scores(self, logits: Tensor) -> Tensor:
        """Probability of each class, [N, k]."""
        return self.probabilities(logits)


class SigmoidOfSets(Sigmoid):
    """Sigmoid of each class where examples have sets of labels: all logits of the reference are log odds already."""

    def own_logits(self, logits: Tensor, classes: Sequence[int]) -> Tensor:
        """The logits of the classes."""
        return columns(logits, classes)

    def rows(self, weight: Tensor, bias: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The reference's own rows."""
        return weight[list(classes)], bias[list(classes)]


head = Sigmoid()
