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

    __slots__ = ("_arrived", "_erased", "_gone", "_here", "_layout", "_low", "_untouched")

    def __init__(self, layout: CopyLayout) -> None:
        # [r, C] each: the first copies of all classes, the second ones, and so on. What is asked of them is worked out
        # when it is asked: a request asks more rarely than copies come.
        shape = max(layout.copies), len(layout.copies)
        self._layout = layout
        self._low = np.zeros(shape)  # awaited and erased copies count 0
        self._here = np.zeros(shape, np.bool_)
        self._gone: _Mask | None = None  # erased copies; None where there are none
        self._arrived = self._erased = 0  # one bit for each worker
        self._untouched = list(layout.holders)  # those that were, when last looked at: see `decided`

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """Take the copies of one worker, each in [0, 1]."""
        places = self._layout.flat[worker]
        self._low.put(places, scores)
        self._here.put(places, True)
        self._arrived |= 1 << worker

    def erase(self, worker: int) -> None:
        """Stop awaiting the copies of one worker, which will not come."""
        if self._gone is None:
            self._gone = np.zeros_like(self._here)
        self._erased |= 1 << worker
        self._gone.put(self._layout.flat[worker], True)

    def decided(self) -> bool:
        """Whether no awaited copy can change the class, whatever it says and whether it comes or not."""
        low, here, gone, copies = self._low, self._here, self._gone, self._layout.count
        untouched = self._untouched
        while untouched and (untouched[-1] & self._arrived or not untouched[-1] & ~self._erased):
            untouched.pop()  # a copy of its classes has arrived, or none is awaited
        if untouched and low.max() < 1.0:
            return False  # such a class may still be elected with a mean of 1, which nothing beats that is less
        open_ = copies if gone is None else copies - _count(gone)  # arrived or awaited
        n, votes, arrived = np.maximum(open_, 1), self._votes(), _count(here)
        best, mean = _best(arrived > 0, 2 * votes > open_, _sums(low) / n)
        if best < 0:
            return False
        awaited = open_ - arrived
        may_be_elected = 2 * (votes + awaited) > open_
        high = np.where(self._layout.filled & ~(here if gone is None else here | gone), 1.0, low)
        elected = bool(2 * votes[best] > open_[best])
        return not _beaten(best, elected, mean, may_be_elected, _sums(high) / n, open_ > 0)

    def certain(self) -> bool:
        """Whether no missing copy, awaited or erased, could have changed the class."""
        best = self.verdict().class_id
        if best < 0:
            return False
        n, sums, votes = self._layout.count, _sums(self._low), self._votes()
        absent = n - _count(self._here)
        elected = bool(2 * votes[best] > n[best])
        may_be_elected = 2 * (votes + absent) > n
        return not _beaten(best, elected, float(sums[best] / n[best]), may_be_elected, (sums + absent) / n, n > 0)

    def verdict(self) -> Verdict:
        """Return the outcome over the copies that have arrived."""
        arrived, votes = _count(self._here), self._votes()
        seen, elected = arrived > 0, 2 * votes > arrived
        means = _sums(self._low) / np.maximum(arrived, 1)
        best, _ = _best(seen, elected, means)
        second, first = np.partition(np.append(means, 0.0), -2)[-2:].tolist()  # as if there were one class more
        scores = means.tolist()
        return Verdict(
            scores, votes.tolist(), arrived.tolist(), first - second, best, best >= 0 and bool(elected[best])
        )

    def _votes(self) -> npt.NDArray[np.int64]:
        return _count(self._here & (self._low >= self._layout.threshold))


def _count(copies: _Mask) -> npt.NDArray[np.int64]:
    """How many of each class's copies are true, [C]."""
    total: npt.NDArray[np.int64] = copies[0].astype(np.int64)
    for nth in copies[1:]:
        total += nth
    return total


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
