"""The wait ``confident``: when an answer is so sure that the copies still to come need not be waited for.

An answer's lead is its class's score minus the best score of any other class, over the copies that have arrived. The
answer is sure when its lead reaches the threshold for the number of copies that every class has by then. A class that
no worker has scored yet makes the answer unsure, however large the lead is: inputs of that class would never be seen.
Thresholds are fitted by `sensai_serve.merge.fit_confidence`, and are only as good as the inputs that they were fitted
on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import BundleError
from sensai_serve.merge.rules import Verdict


@dataclass(frozen=True)
class Confidence:
    """When a bundle's answers are sure, and the order in which its workers are best asked."""

    thresholds: tuple[float, ...]
    """The n-th is the lead from which an answer is sure once every class has n copies; infinity for never."""
    order: tuple[int, ...]
    """Every worker once: those come first whose copies settle an answer soonest."""
    agreement: float
    """The fraction of the answers stopped at each number of copies that are to equal those of all copies."""
    inputs: int
    """Number of inputs that the thresholds were fitted on."""
    stopped: tuple[float, ...]
    """The fraction of those inputs that stop at 1, 2, ... copies of every class, asked in this order."""

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1:
            raise BundleError(f"merge.confident.agreement is {self.agreement}, expected more than 0 and at most 1")
        if self.inputs < 1:
            raise BundleError(f"merge.confident.inputs is {self.inputs}, expected at least 1")
        if sorted(self.order) != list(range(len(self.order))):
            raise BundleError(f"merge.confident.order is {list(self.order[:20])}, expected every worker once")
        for lead in self.thresholds:
            if not (lead == math.inf or -1 <= lead <= 1):
                raise BundleError(f"merge.confident.thresholds holds {lead}, expected leads of -1 to 1, or null")
        if len(self.stopped) != len(self.thresholds) or not all(0 <= share <= 1 for share in self.stopped):
            raise BundleError(
                f"merge.confident.stopped is {list(self.stopped[:20])}, expected a fraction for each of "
                f"{len(self.thresholds)} thresholds"
            )

    def threshold(self, copies: int) -> float:
        """The lead from which an answer is sure once every class that awaits any has so many copies."""
        return self.thresholds[copies - 1] if 1 <= copies <= len(self.thresholds) else math.inf


def lead(verdict: Verdict) -> float:
    """Score of the verdict's class minus the best score of any other class, in [-1, 1]; -1 where it has no class."""
    best = verdict.class_id
    if best < 0:
        return -1.0
    scores = verdict.scores
    other = max(max(scores[:best], default=0.0), max(scores[best + 1 :], default=0.0))
    return scores[best] - other


def leads(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The `lead` [N] of each of many inputs.

    Args:
        scores: of each class [N, C].
        labels: the class of each input [N], -1 for none.
    """
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = 0.0
    return np.where(labels < 0, -1.0, scores[rows, labels] - others.max(axis=1))


def least_copies(arrived: Sequence[int], coming: Sequence[int]) -> int:
    """The smallest number of arrived copies of any class that awaits more; 0 where none awaits any.

    Args:
        arrived: of each class, its arrived copies.
        coming: of each class, its copies that have arrived or are awaited.
    """
    return min((have for have, all_ in zip(arrived, coming, strict=True) if have < all_), default=0)
