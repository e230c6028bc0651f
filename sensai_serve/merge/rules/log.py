"""Mean of log odds: the class whose arrived copies have the largest mean of log(score / (1 - score)) wins.

It is the logarithmic opinion pool of workers that each say how likely a class is. Unlike a vote it counts how sure
each of them is. Scores are clipped, so that one worker that is certain cannot outweigh all others. A reply's scores are
the probabilities that the mean log odds stand for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.rules import CopyLayout
from sensai_serve.merge.rules._labels import LabelMath, LabelVotes
from sensai_serve.merge.rules._means import MeanValue, largest_mean, mean_values

CLIP = 1e-4
"""Scores are taken to be at least this, and at most one minus it: log odds of at most 9.2."""
_GRID = 2.0**20
"""Log odds are rounded to multiples of its inverse, a millionth."""


class Labels(LabelVotes):
    """One input's vote on every class: a label carries if the mean log odds of its copies reach its threshold's."""

    __slots__ = ()

    def __init__(self, layout: CopyLayout) -> None:
        super().__init__(layout, _LABELS)

    @staticmethod
    def merge_many(copies: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether each label carries, BOOL [N, C], of many inputs at once. See `sensai_serve.merge.rules`."""
        cuts = np.array([log_odds(threshold) for threshold in thresholds.tolist()])
        return np.asarray(mean_values(_log_odds_many(copies), copies) >= cuts, np.bool_)  # NaN compares false


class Rule(MeanValue):
    """One input's merge. See `sensai_serve.merge.rules.Rule`."""

    Labels = Labels
    __slots__ = ()

    def __init__(self, layout: CopyLayout) -> None:
        super().__init__(layout, log_odds, _probability)

    @staticmethod
    def merge_many(copies: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.int64]:
        """The classes [N] that win, of many inputs at once. See `sensai_serve.merge.rules`."""
        return largest_mean(_log_odds_many(copies), copies)

    @staticmethod
    def scores_many(copies: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.float64]:
        """The scores [N, C] of many inputs at once. See `sensai_serve.merge.rules`."""
        means = mean_values(_log_odds_many(copies), copies)
        # Python's exp for each, which numpy's differs from in the last bit.
        return np.where(np.isnan(means), 0.0, np.vectorize(_probability, otypes=[np.float64])(means))


def log_odds(score: float) -> float:
    """Log odds of a score, clipped and rounded."""
    clipped = min(max(score, CLIP), 1 - CLIP)
    return math.floor(math.log(clipped / (1 - clipped)) * _GRID + 0.5) / _GRID


def _log_odds_many(copies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    clipped = np.clip(copies, CLIP, 1 - CLIP)
    return np.floor(np.log(clipped / (1 - clipped)) * _GRID + 0.5) / _GRID


def _probability(mean: float) -> float:
    return 1 / (1 + math.exp(-mean))


def _pool(scores: Sequence[float]) -> float:
    return _probability(sum(map(log_odds, scores)) / len(scores))


_LABELS = LabelMath(value=lambda score, _: log_odds(score), cut=log_odds, pool=_pool)
