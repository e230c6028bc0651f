"""Mean score: the class whose arrived copies have the largest mean score wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.rules import CopyLayout
from sensai_serve.merge.rules._labels import LabelMath, LabelVotes
from sensai_serve.merge.rules._means import MeanValue, largest_mean, mean_values

_GRID = 2.0**40
"""Scores are rounded to multiples of its inverse. FP32 scores above 2**-16 are such multiples already."""


class Labels(LabelVotes):
    """One input's vote on every class: a label carries if the mean score of its copies reaches its threshold."""

    __slots__ = ()

    def __init__(self, layout: CopyLayout) -> None:
        super().__init__(layout, _LABELS)

    @staticmethod
    def merge_many(copies: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether each label carries, BOOL [N, C], of many inputs at once. See `sensai_serve.merge.rules`."""
        return np.asarray(mean_values(_values(copies), copies) >= _values(thresholds), np.bool_)  # NaN compares false


class Rule(MeanValue):
    """One input's merge. See `sensai_serve.merge.rules.Rule`."""

    Labels = Labels
    __slots__ = ()

    def __init__(self, layout: CopyLayout) -> None:
        super().__init__(layout, _value, float)

    @staticmethod
    def merge_many(copies: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.int64]:
        """The classes [N] that win, of many inputs at once. See `sensai_serve.merge.rules`."""
        return largest_mean(_values(copies), copies)

    @staticmethod
    def scores_many(copies: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.float64]:
        """The scores [N, C] of many inputs at once. See `sensai_serve.merge.rules`."""
        return np.nan_to_num(mean_values(_values(copies), copies))


def _value(score: float) -> float:
    return math.floor(score * _GRID + 0.5) / _GRID


def _pool(scores: Sequence[float]) -> float:
    return sum(map(_value, scores)) / len(scores)


_LABELS = LabelMath(value=lambda score, _: _value(score), cut=_value, pool=_pool)


def _values(copies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.floor(copies * _GRID + 0.5) / _GRID, np.float64)
