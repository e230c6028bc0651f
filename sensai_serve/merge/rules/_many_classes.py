"""The majority vote over many classes, in numpy: `majority` says what it decides, and gives the very same answers.

Python looks at one class after the other, which is faster for a few classes; from `MANY` classes on, numpy's calls cost
less than the loop. Sums are taken copy by copy, in worker order, as they are there, so they round alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.rules import CopyLayout, Verdict

MANY = 64
"""Number of classes from which on numpy is faster."""
_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


class Rule:
    """One input's vote. See `sensai_serve.merge.rules.Rule`."""

    __slots__ = ("_arrived", "_high", "_layout", "_low", "_ones", "_open", "_untouched", "_votes")

    def __init__(self, layout: CopyLayout) -> None:
        n_classes = len(layout.copies)
        self._layout = layout
        self._open = np.array(layout.copies)  # arrived or awaited, [C]
        # [r, C]: the first copies of all classes, the second ones, ...; awaited copies count 1 in `_high`, others 0.
        self._high = (np.arange(max(layout.copies))[:, None] < self._open).astype(np.float64)
        self._low = np.zeros_like(self._high)  # awaited and erased copies count 0
        self._arrived = np.zeros(n_classes, np.int64)
        self._votes = np.zeros(n_classes, np.int64)
        self._untouched = n_classes  # classes with copies that are awaited, none of which has arrived
        self._ones = False  # some copy is exactly 1

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """Take the copies of one worker, each in [0, 1]."""
        classes, nth = self._layout.classes[worker], self._layout.nth[worker]
        values = np.asarray(scores, np.float64)
        self._low[nth, classes] = self._high[nth, classes] = values
        arrived = self._arrived[classes]
        self._untouched -= len(classes) - int(np.count_nonzero(arrived))
        self._arrived[classes] = arrived + 1
        self._votes[classes] += values >= self._layout.threshold
        self._ones = self._ones or bool((values == 1.0).any())

    def erase(self, worker: int) -> None:
        """Stop awaiting the copies of one worker, which will not come."""
        classes, nth = self._layout.classes[worker], self._layout.nth[worker]
        self._high[nth, classes] = 0.0
        self._open[classes] -= 1
        self._untouched -= int(np.count_nonzero(self._open[classes] == 0))

    def decided(self) -> bool:
        """Whether no awaited copy can change the class, whatever it says and whether it comes or not."""
        if self._untouched and not self._ones:
            return False  # such a class may still be elected with a mean of 1, which nothing beats that is less
        n, seen = np.maximum(self._open, 1), self._arrived > 0
        elected = 2 * self._votes > self._open
        best, mean = _best(seen, elected, _sums(self._low) / n)
        if best < 0:
            return False
        may_be_elected = 2 * (self._votes + self._open - self._arrived) > self._open
        return not _beaten(best, bool(elected[best]), mean, may_be_elected, _sums(self._high) / n, self._open > 0)

    def certain(self) -> bool:
        """Whether no missing copy, awaited or erased, could have changed the class."""
        best = self.verdict().class_id
        if best < 0:
            return False
        n, sums = np.array(self._layout.copies), _sums(self._low)
        absent = n - self._arrived
        elected = bool(2 * self._votes[best] > n[best])
        may_be_elected = 2 * (self._votes + absent) > n
        return not _beaten(best, elected, float(sums[best] / n[best]), may_be_elected, (sums + absent) / n, n > 0)

    def verdict(self) -> Verdict:
        """Return the outcome over the copies that have arrived."""
        arrived = self._arrived
        seen, elected = arrived > 0, 2 * self._votes > arrived
        means = _sums(self._low) / np.maximum(arrived, 1)
        best, _ = _best(seen, elected, means)
        second, first = np.partition(np.append(means, 0.0), -2)[-2:].tolist()  # as if there were one class more
        scores, votes, copies = means.tolist(), self._votes.tolist(), arrived.tolist()
        return Verdict(scores, votes, copies, first - second, best, best >= 0 and bool(elected[best]))


def _sums(copies: _Floats) -> _Floats:
    """Sum of each class's copies, in worker order; numpy's own sum could add up in another order."""
    total: _Floats = copies[0].copy()
    for nth in copies[1:]:
        total += nth
    return total


def _best(seen: _Mask, elected: _Mask, means: _Floats) -> tuple[int, float]:
    """The class of the largest key (elected, mean, -index) among those seen, and its mean; -1 where none was."""
    winners = seen & elected
    if not winners.any():
        winners = seen
        if not winners.any():
            return -1, -1.0
    best = int(np.where(winners, means, -1.0).argmax())  # of equal means the first class
    return best, float(means[best])


def _beaten(best: int, elected: bool, mean: float, others: _Mask, means: _Floats, present: _Mask) -> bool:
    """Whether some other class may have a larger key than (elected, mean, -best).

    Args:
        best: a class.
        elected: whether it is elected.
        mean: its mean.
        others: of each class, whether it may be elected.
        means: the largest mean that each class may have.
        present: the classes that may win at all.
    """
    larger = means > mean
    larger[:best] |= means[:best] == mean
    if elected:
        larger &= others
    else:
        larger |= others
    larger &= present
    larger[best] = False
    return bool(larger.any())
