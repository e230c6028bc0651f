"""Majority vote over the arrived copies of each class, decided as soon as nothing can change it.

Class c is elected if more than half of its arrived copies vote for it. Each class has the key (elected, mean arrived
score, -index), and the largest key wins. A class none of whose copies arrived cannot win.

Decided: a class's key lies between its lower key (awaited copies at 0) and its upper key (awaited copies at 1), also
when some awaited copies turn out to be erasures. The vote is decided when one class's lower key beats every other's
upper key. Lower keys only rise and upper keys only fall as copies arrive or are erased, so

- a class whose lower key is elected stays so: the best one is among those few, nearly always one, and no sum is taken
  to find it, and
- a rival once beaten stays beaten: rivals are a stack whose top is looked at, and popped for good when beaten. One
  request looks at each class a constant number of times, not once per arrival. A rival that cannot be elected any more
  is beaten by counting alone.

Means are float64 sums in worker order, divided by the count. The bounds are the same sums with 0 or 1 in place of what
is awaited. Rounding is monotone in every term, so with FP32 scores the bounds hold exactly, not only up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.rules import CopyLayout, Verdict, _many_classes
from sensai_serve.merge.rules._labels import LabelMath, LabelVotes

_Key = tuple[bool, float, int]
_MORE_THAN_HALF = math.nextafter(0.5, 1)


class Labels(LabelVotes):
    """One input's vote on every class: a label carries if more than half of its arrived copies vote for it."""

    __slots__ = ()

    def __init__(self, layout: CopyLayout) -> None:
        super().__init__(layout, _LABELS)

    @staticmethod
    def merge_many(copies: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether each label carries, BOOL [N, C], of many inputs at once. See `sensai_serve.merge.rules`."""
        present = ~np.isnan(copies)
        votes = present & (copies >= thresholds)
        return np.asarray(2 * votes.sum(axis=1) > present.sum(axis=1), np.bool_)


def _mean(scores: Sequence[float]) -> float:
    total = 0.0
    for score in scores:  # as `Rule.verdict` sums
        total += score
    return total / len(scores)


_LABELS = LabelMath(value=lambda score, threshold: float(score >= threshold), cut=lambda _: _MORE_THAN_HALF, pool=_mean)


class Rule:
    """One input's vote. See `sensai_serve.merge.rules.Rule`."""

    Labels = Labels
    __slots__ = ("_arrived", "_best", "_elected", "_high", "_layout", "_low", "_ones", "_open", "_rivals",
                 "_untouched", "_votes")  # fmt: skip
    for_many_classes = _many_classes.MANY, _many_classes.Rule

    def __init__(self, layout: CopyLayout) -> None:
        n_classes, n_copies = len(layout.copies), layout.starts[-1]
        self._layout = layout
        self._low = [0.0] * n_copies  # awaited and erased copies count 0
        self._high = [1.0] * n_copies  # awaited copies count 1, erased ones 0
        self._open = list(layout.copies)  # arrived or awaited
        self._arrived = [0] * n_classes
        self._votes = [0] * n_classes
        self._elected: list[int] = []  # classes whose lower key is elected
        self._best = -1
        self._rivals = list(range(n_classes))
        self._untouched = n_classes  # classes with copies that are awaited, none of which has arrived
        self._ones = False  # some copy is exactly 1

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """Take the copies of one worker, each in [0, 1]."""
        low, high, arrived, threshold = self._low, self._high, self._arrived, self._layout.threshold
        for (c, place), score in zip(self._layout.places[worker], scores, strict=True):
            low[place] = high[place] = score
            if not arrived[c]:
                self._untouched -= 1
            arrived[c] += 1
            if score >= threshold:
                votes = self._votes[c] = self._votes[c] + 1
                if 2 * votes > self._open[c] >= 2 * votes - 2:
                    self._elected.append(c)
                if score == 1.0:
                    self._ones = True

    def erase(self, worker: int) -> None:
        """Stop awaiting the copies of one worker, which will not come."""
        for c, place in self._layout.places[worker]:
            self._high[place] = 0.0
            self._open[c] -= 1
            if not self._open[c]:
                self._untouched -= 1
            if self._open[c] < 2 * self._votes[c] <= self._open[c] + 1:
                self._elected.append(c)

    def decided(self) -> bool:
        """Whether no awaited copy can change the class, whatever it says and whether it comes or not."""
        if self._untouched and not self._ones:
            return False  # such a class may still be elected with a mean of 1, which nothing beats that is less
        rivals, elected = self._rivals, self._elected
        if not elected and len(rivals) > 1 and all(map(self._may_be_elected, rivals[-2:])):
            return False  # nobody is elected and two may be, one of them a rival: so it is while little has arrived
        best = elected[0] if len(elected) == 1 else max(elected or self._seen(), key=self._lower_key, default=-1)
        if best < 0:
            return False
        if best != self._best:
            if self._best >= 0:
                rivals.append(self._best)
            self._best = best
        best_key: _Key | None = None
        while rivals:
            rival = rivals[-1]
            if rival != best and self._open[rival] and (not elected or self._may_be_elected(rival)):
                best_key = best_key or self._lower_key(best)
                if self._upper_key(rival) > best_key:
                    return False
            rivals.pop()
        return True

    def certain(self) -> bool:
        """Whether no missing copy, awaited or erased, could have changed the class."""
        best = self.verdict().class_id
        if best < 0:
            return False
        copies = self._layout.copies
        n = copies[best]
        lowest: _Key = (2 * self._votes[best] > n, self._sum(self._low, best) / n, -best)
        for c, n in enumerate(copies):
            if c == best:
                continue
            absent = n - self._arrived[c]
            if (2 * (self._votes[c] + absent) > n, (self._sum(self._low, c) + absent) / n, -c) > lowest:
                return False
        return True

    def verdict(self) -> Verdict:
        """Return the outcome over the copies that have arrived."""
        best, best_elected, best_mean = -1, False, -1.0
        first = second = 0.0
        scores = []
        low, starts, start = self._low, self._layout.starts, 0
        for c, (arrived, votes) in enumerate(zip(self._arrived, self._votes, strict=True)):
            end, mean = starts[c + 1], 0.0
            if arrived:
                # Not sum(): from Python 3.12 on it compensates rounding, and the bounds would be other sums.
                for score in low[start:end]:
                    mean += score
                mean /= arrived
                elected = 2 * votes > arrived
                if elected > best_elected or (elected == best_elected and mean > best_mean):
                    best, best_elected, best_mean = c, elected, mean
            scores.append(mean)
            if mean > first:
                first, second = mean, first
            elif mean > second:
                second = mean
            start = end
        return Verdict(scores, self._votes, self._arrived, first - second, best, best_elected)

    @staticmethod
    def merge_many(copies: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.int64]:
        """The classes [N] that win, of many inputs at once; -1 where no copy of any class arrived.

        Args:
            copies: arrived copies [N, W, C], NaN where there is none.
            threshold: a copy at or above it is a vote.
        """
        present = ~np.isnan(copies)
        arrived = present.sum(axis=1)  # [N, C]
        means = Rule.scores_many(copies, threshold)
        elected = 2 * (present & (copies >= threshold)).sum(axis=1) > arrived
        in_play = (arrived > 0) & (elected == elected.any(axis=1, keepdims=True))
        labels = np.where(in_play, means, -1.0).argmax(axis=1)  # of equal means the first class
        return np.where(arrived.any(axis=1), labels, -1)

    @staticmethod
    def scores_many(copies: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.float64]:
        """Mean score [N, C] of each class over its arrived copies, 0 for none. Takes what `merge_many` does."""
        present = ~np.isnan(copies)
        values, means = np.where(present, copies, 0.0), np.zeros((len(copies), copies.shape[2]))
        for worker in range(copies.shape[1]):  # one after the other: a sum in another order can round otherwise
            means += values[:, worker]
        return np.asarray(means / np.maximum(present.sum(axis=1), 1), np.float64)

    def _seen(self) -> list[int]:
        return [c for c, arrived in enumerate(self._arrived) if arrived]

    def _may_be_elected(self, c: int) -> bool:
        n = self._open[c]
        return 2 * (self._votes[c] + n - self._arrived[c]) > n

    def _lower_key(self, c: int) -> _Key:
        n = self._open[c]
        return (2 * self._votes[c] > n, self._sum(self._low, c) / n, -c)

    def _upper_key(self, c: int) -> _Key:
        return (self._may_be_elected(c), self._sum(self._high, c) / self._open[c], -c)

    def _sum(self, copies: Sequence[float], c: int) -> float:
        total = 0.0
        for score in copies[self._layout.starts[c] : self._layout.starts[c + 1]]:
            total += score
        return total
