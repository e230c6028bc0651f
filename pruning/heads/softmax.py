"""``softmax``: exactly one of all classes; the head of a reference or of one network for all classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pruning.heads import against_others, columns


class Softmax:
    """A classifier over all classes, trained with cross-entropy; scores are probabilities that sum to 1."""

    of_all_classes = True

    def own_logits(self, logits: Tensor, classes: Sequence[int]) -> Tensor:
        """The logits [N, C] of the classes, in their order."""
        return columns(logits, classes)

    def rows(self, weight: Tensor, bias: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The reference's own rows."""
        return weight[list(classes)], bias[list(classes)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class; they sum to 1."""
        return logits.softmax(dim=1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy against probabilities."""
        return F.cross_entropy(logits, targets)

    def log_odds(self, logits: Tensor) -> Tensor:
        """Each class against all other outputs."""
        return against_others(logits)

    def scores(self, logits: Tensor) -> Tensor:
        """Probability of each class, [N, k]."""
        return self.probabilities(logits)


head = Softmax()
