"""How good the merged answer is when workers are lost: the vote over many inputs and many sets of losses at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from sensai_serve.assignment import Assignment

Copies = npt.NDArray[np.float64]
"""[N, W, C], NaN where a worker does not cover a class."""
Labels = npt.NDArray[np.int64]

MOST_SETS = 252
"""Sets of lost workers that are tried for each number of them: all, up to ten workers."""


@dataclass(frozen=True)
class Lost:
    """Accuracy when this many workers are lost."""

    lost: int
    sets: int
    """Sets of lost workers that were tried."""
    every: bool
    """These are all there are."""
    mean: float
    worst: float
    best: float


def copies_of(assignment: Assignment, scores: Sequence[npt.NDArray[np.floating]]) -> Copies:
    """All workers' scores in one array.

    Args:
        assignment: who covers what.
        scores: of every worker [N, k], in the order of its row.
    """
    copies = np.full((len(scores[0]), assignment.n_workers, assignment.n_classes), np.nan)
    for worker, row in enumerate(assignment.rows):
        copies[:, worker, list(row)] = scores[worker]
    return copies


def majority(copies: Copies, threshold: float) -> Labels:
    """The rule `majority` over many inputs at once.

    Args:
        copies: of the workers that arrived.
        threshold: a copy at or above it is a vote.

    Returns:
        Classes [N], -1 where no copy of any class arrived.
    """
    present = ~np.isnan(copies)
    arrived = present.sum(axis=1)  # [N, C]
    values = np.where(present, copies, 0.0)
    means = np.zeros(arrived.shape)
    for worker in range(copies.shape[1]):  # one after the other: a sum in another order can round otherwise
        means += values[:, worker]
    means /= np.maximum(arrived, 1)
    elected = 2 * (present & (values >= threshold)).sum(axis=1) > arrived
    in_play = (arrived > 0) & (elected == elected.any(axis=1, keepdims=True))
    labels = np.where(in_play, means, -1.0).argmax(axis=1)  # of equal means the first class
    return np.where(arrived.any(axis=1), labels, -1)


def loss_sets(n_workers: int, lost: int, most: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Sets of `lost` workers: all of them, or `most` drawn ones where there are more."""
    if comb(n_workers, lost) <= most:
        yield from itertools.combinations(range(n_workers), lost)
        return
    random = np.random.default_rng(seed)
    for _ in range(most):
        yield tuple(sorted(random.choice(n_workers, lost, replace=False).tolist()))


def accuracy(labels: Sequence[int] | Labels, truth: Labels) -> float:
    """The share that is right."""
    return float(np.mean(np.asarray(labels) == truth))


def loss_curve(
    copies: Copies,
    threshold: float,
    truth: Labels,
    *,
    most: int = MOST_SETS,
    seed: int = 0,
    up_to: int | None = None,
) -> list[Lost]:
    """Accuracy for 0, 1, ... W lost workers, under the rule `majority`.

    Args:
        copies: of all workers.
        threshold: see `majority`.
        truth: labels [N].
        most: sets of each size that are tried, drawn where there are more.
        seed: of that draw.
        up_to: this many lost workers instead of W.
    """
    n_workers, curve = copies.shape[1], []
    for lost in range(n_workers + 1 if up_to is None else up_to + 1):
        values = [
            accuracy(majority(np.delete(copies, chosen, axis=1), threshold), truth)
            for chosen in loss_sets(n_workers, lost, most, seed)
        ]
        every = comb(n_workers, lost) <= most
        curve.append(Lost(lost, len(values), every, float(np.mean(values)), min(values), max(values)))
    return curve
