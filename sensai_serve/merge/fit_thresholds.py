"""Fits the threshold of each class, where an input has a set of labels, on scored inputs whose labels are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.lost_workers import ScoredInputs

TRIED = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds that are tried, of which a half is one."""
LEAST = 8
"""Inputs with a label, and without it, from which its threshold is fitted; with fewer it stays a half."""
DEFAULT = 0.5


def fit_thresholds(inputs: ScoredInputs, truth: npt.NDArray[Any]) -> tuple[float, ...]:
    """For each class the threshold with the best F1 of the merged answer; of equal ones the nearest to a half.

    A class of which there are few inputs with or without its label keeps a half, which is right for scores that are
    calibrated.

    Args:
        inputs: scores of all workers, of the task ``multilabel``.
        truth: the inputs' true labels, 0 and 1 [N, C].
    """
    with_label = np.asarray(truth, np.bool_)
    each = []
    for threshold in TRIED:
        plan = replace(inputs.plan, of_classes=(threshold,) * with_label.shape[1])
        each.append(f1_of_classes(ScoredInputs(plan, inputs.scores).labels(), with_label))
    found, tried = np.array(each), np.array(TRIED)  # [tried, C]
    found = np.where(found >= found.max(axis=0) - 1e-12, np.abs(tried - DEFAULT)[:, None], np.inf)
    best, count = tried[found.argmin(axis=0)], with_label.sum(axis=0)
    enough = (count >= LEAST) & (len(with_label) - count >= LEAST)
    return tuple(np.where(enough, best, DEFAULT).tolist())


def f1_of_classes(labels: npt.NDArray[Any], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The F1 of each class [C], 0 for one that is neither there nor answered.

    Args:
        labels: whether each label is answered [N, C].
        truth: whether each is there [N, C].
    """
    given = np.asarray(labels, np.bool_)
    both, said = (given & truth).sum(axis=0), given.sum(axis=0) + truth.sum(axis=0)
    return np.asarray(2 * both / np.maximum(said, 1), np.float64)
