"""What the rules `mean` and `log` share: the class whose copies have the largest mean of some value wins.

A class's key is (mean value of its arrived copies, -index); the largest key wins. A class none of whose copies arrived
cannot win.

Decided: a value lies between `least` and `most`, so a class's mean lies between those that it has when all awaited
copies come with the least value, and with the most; a copy that does not come at all leaves the mean between the two.
The vote is decided when one class's lower key beats every other's upper key. Both can happen at once, since a copy of
one class says nothing about another's, so nothing is decided later than it must be. Lower keys only rise and upper
keys only fall as copies arrive or are erased: a rival once beaten stays beaten, and is looked at once.

Values are multiples of a power of two so large that their sums are exact in float64: the order of arrival changes
nothing, and the bounds hold exactly, not only up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.rules import CopyLayout, Verdict


class MeanValue:
    """One input's merge by the mean of a value of each copy."""

    __slots__ = ("_arrived", "_best", "_best_low", "_layout", "_least", "_most", "_open", "_rivals", "_score", "_sum",
                 "_untouched", "_value", "_votes")  # fmt: skip

    def __init__(self, layout: CopyLayout, value: Callable[[float], float], score: Callable[[float], float]) -> None:
        """Start one input.

        Args:
            layout: where each copy belongs.
            value: of a score in [0, 1], rising, a multiple of a power of two.
            score: of a mean value, rising, in [0, 1]: what a reply shows.
        """
        n_classes = len(layout.copies)
        self._layout = layout
        self._value, self._score = value, score
        self._least, self._most = value(0.0), value(1.0)
        self._sum = [0.0] * n_classes  # of the values that arrived
        self._open = list(layout.copies)  # arrived or awaited
        self._arrived = [0] * n_classes
        self._votes = [0] * n_classes
        self._best, self._best_low = -1, self._least  # the class of the largest lower key
        self._rivals = list(range(n_classes))
        self._untouched = n_classes  # classes with copies that are awaited, none of which has arrived

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """Take the copies of one worker, each in [0, 1]."""
        threshold, value = self._layout.threshold, self._value
        for (c, _), score in zip(self._layout.places[worker], scores, strict=True):
            self._sum[c] += value(score)
            if not self._arrived[c]:
                self._untouched -= 1
            self._arrived[c] += 1
            self._votes[c] += score >= threshold
            self._raise(c)

    def erase(self, worker: int) -> None:
        """Stop awaiting the copies of one worker, which will not come."""
        for c, _ in self._layout.places[worker]:
            self._open[c] -= 1
            if self._arrived[c]:
                self._raise(c)
            elif not self._open[c]:
                self._untouched -= 1

    def decided(self) -> bool:
        """Whether no awaited copy can change the class, whatever it says and whether it comes or not."""
        best, low, rivals = self._best, self._best_low, self._rivals
        if best < 0 or (self._untouched and low < self._most):
            return False
        while rivals:
            c = rivals[-1]
            if c != best and self._open[c]:
                awaited = self._open[c] - self._arrived[c]
                high = (self._sum[c] + awaited * self._most) / self._open[c]
                if high > low or (high == low and c < best):
                    return False
            rivals.pop()
        return True

    def certain(self) -> bool:
        """Whether no missing copy, awaited or erased, could have changed the class."""
        best = self.verdict().class_id
        if best < 0:
            return False
        copies = self._layout.copies
        low = (self._sum[best] + (copies[best] - self._arrived[best]) * self._least) / copies[best]
        for c, n in enumerate(copies):
            high = (self._sum[c] + (n - self._arrived[c]) * self._most) / n
            if c != best and (high > low or (high == low and c < best)):
                return False
        return True

    def verdict(self) -> Verdict:
        """Return the outcome over the copies that have arrived."""
        best, best_mean = -1, -float("inf")
        first = second = 0.0
        scores = []
        for c, (total, arrived) in enumerate(zip(self._sum, self._arrived, strict=True)):
            score = 0.0
            if arrived:
                mean = total / arrived
                score = self._score(mean)
                if mean > best_mean:
                    best, best_mean = c, mean
            scores.append(score)
            if score > first:
                first, second = score, first
            elif score > second:
                second = score
        elected = best >= 0 and 2 * self._votes[best] > self._arrived[best]
        return Verdict(scores, self._votes, self._arrived, first - second, best, elected)

    def _raise(self, c: int) -> None:
        """The lower key of a class with arrived copies has risen."""
        n, best = self._open[c], self._best
        low = (self._sum[c] + (n - self._arrived[c]) * self._least) / n
        if c == best:
            self._best_low = low
        elif best < 0 or low > self._best_low or (low == self._best_low and c < best):
            if best >= 0:
                self._rivals.append(best)
            self._best, self._best_low = c, low


def largest_mean(values: npt.NDArray[np.float64], copies: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The classes [N] that win, of many inputs at once; -1 where no copy of any class arrived.

    Args:
        values: of each copy, [N, W, C].
        copies: arrived copies [N, W, C], NaN where there is none.
    """
    means = mean_values(values, copies)
    labels = np.where(np.isnan(means), -np.inf, means).argmax(axis=1)  # of equal means the first class
    return np.where(np.isnan(means).all(axis=1), -1, labels)


def mean_values(values: npt.NDArray[np.float64], copies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean value [N, C] of each class over its arrived copies, NaN for none. Takes what `largest_mean` does."""
    present = ~np.isnan(copies)
    arrived = present.sum(axis=1)  # [N, C]
    sums = np.where(present, values, 0.0).sum(axis=1)
    return np.where(arrived > 0, sums / np.maximum(arrived, 1), np.nan)
