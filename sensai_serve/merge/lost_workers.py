"""How accurate the merged answer stays when workers are lost: many inputs, merged over many sets of workers."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.merge import MergePlan, merge

Labels = npt.NDArray[np.int64]
"""Classes [N]; where inputs have several labels at once, 0 and 1 [N, C]."""
MOST_SETS = 252
"""Sets of lost workers that are tried for each number of them: all that there are, up to ten workers."""

MOST_NUMBERS = 50_000_000
"""Copies [N, W, C] that are in memory at a time, 400 MB; more inputs are merged in parts."""


@dataclass(frozen=True)
class AccuracyAtLoss:
    """Accuracy of the merged answer, as fractions (see `accuracy`), when a number of workers is lost."""

    lost: int
    """Number of lost workers."""
    sets: int
    """Sets of so many workers that were tried."""
    every: bool
    """Whether these are all the sets that there are."""
    mean: float
    worst: float
    best: float


@dataclass(frozen=True)
class ScoredInputs:
    """Every worker's scores of the same N inputs, to be merged as if some workers were lost.

    Labels are those of the rule of `plan`, as `sensai_serve.merge.merge` gives them for each input alone.
    """

    plan: MergePlan
    scores: Sequence[npt.NDArray[np.floating]]
    """Scores [N, k] of every worker, in the order of the assignment's rows."""

    @cached_property
    def copies(self) -> npt.NDArray[np.float64]:
        """All scores in one array [N, W, C]; NaN where a worker does not cover a class or its scores are no scores."""
        assignment = self.plan.assignment
        copies = np.full((len(self.scores[0]), assignment.n_workers, assignment.n_classes), np.nan)
        for worker, row in enumerate(assignment.rows):
            given = np.asarray(self.scores[worker], np.float32)
            valid = np.all((given >= 0) & (given <= 1), axis=1)  # the merge erases a worker of which one score is not
            copies[:, worker, list(row)] = np.where(np.expand_dims(valid, 1), given, np.nan)
        return copies

    def labels(self, lost: Collection[int] = ()) -> Labels:
        """The merged classes [N] without the copies of the workers `lost`; -1 where no copy of any class is left.

        Of the task ``multilabel`` 1 for each label that carries, else 0 [N, C].
        """
        assignment, count = self.plan.assignment, len(self.scores[0])
        if count > (step := max(1, MOST_NUMBERS // (assignment.n_workers * assignment.n_classes))):
            parts = [[scores[at : at + step] for scores in self.scores] for at in range(0, count, step)]
            return np.concatenate([replace(self, scores=part).labels(lost) for part in parts])
        several = self.plan.task == "multilabel"
        vectorised = getattr(self.plan.rule_type, "merge_many", None)
        if vectorised is not None:
            left = np.delete(self.copies, list(lost), axis=1)
            if several:
                return np.asarray(vectorised(left, np.array(self.plan.thresholds)), np.int64)
            return np.asarray(vectorised(left, self.plan.threshold), np.int64)
        given = [None if w in lost else np.asarray(s, np.float32) for w, s in enumerate(self.scores)]
        if all(one is None for one in given):
            nothing = np.full(len(self.scores[0]), -1)
            return np.zeros((len(nothing), self.plan.assignment.n_classes), np.int64) if several else nothing
        each = (
            merge(self.plan, [None if one is None else one[at : at + 1] for one in given])
            for at in range(len(self.scores[0]))
        )
        if several:
            return np.array([answer.labels[0] for answer in each], np.int64)
        return np.array([answer.class_id[0] for answer in each], np.int64)


def sets_of_workers(n_workers: int, size: int, most: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Sets of `size` workers: all that there are, or `most` random ones where there are more.

    Args:
        n_workers: W.
        size: workers in each set, 0 to W.
        most: the largest number of sets.
        seed: seed of the random ones.
    """
    if comb(n_workers, size) <= most:
        yield from itertools.combinations(range(n_workers), size)
        return
    random = np.random.default_rng(seed)
    for _ in range(most):
        yield tuple(sorted(random.choice(n_workers, size, replace=False).tolist()))


def accuracy(labels: Sequence[int] | npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """The fraction of `labels` [N] that equal `truth` [N]; of sets of labels [N, C] the F1 over all of them (micro)."""
    given = np.asarray(labels)
    if given.ndim == 1:
        return float(np.mean(given == truth))
    said, there = np.asarray(given, np.bool_), np.asarray(truth, np.bool_)
    both = int(said.sum()) + int(there.sum())
    return 2 * int((said & there).sum()) / both if both else 1.0


def accuracy_curve(
    inputs: ScoredInputs, truth: Labels, *, most: int = MOST_SETS, seed: int = 0, up_to: int | None = None
) -> list[AccuracyAtLoss]:
    """Accuracy with 0, 1, ... W workers lost.

    Args:
        inputs: scores of all workers.
        truth: true labels [N]; [N, C] where inputs have several at once.
        most: sets of each size that are tried; random ones where there are more.
        seed: seed of the random sets.
        up_to: the largest number of lost workers; None: W.
    """
    n_workers, curve = inputs.plan.assignment.n_workers, []
    for lost in range(n_workers + 1 if up_to is None else up_to + 1):
        values = [accuracy(inputs.labels(chosen), truth) for chosen in sets_of_workers(n_workers, lost, most, seed)]
        every = comb(n_workers, lost) <= most
        curve.append(AccuracyAtLoss(lost, len(values), every, float(np.mean(values)), min(values), max(values)))
    return curve
