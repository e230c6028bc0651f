"""Majority vote over the arrived copies of each class, decided as soon as nothing can change it.

Class c is elected if more than half of its arrived copies vote for it. Each class has the key (elected, mean arrived
score, -index), and the largest key wins. A class none of whose copies arrived cannot win.

Decided: a class's key lies between its lower key (awaited copies at 0) and its upper key (awaited copies at 1), also
when some awaited copies turn out to be erasures. The vote is decided when one class's lower key beats every other's
upper key. Lower keys only rise and upper keys only fall as copies arrive or are erased, so

- the class with the best lower key is found by comparing only the classes that changed, and
- a rival once beaten stays beaten: rivals are a stack whose top is looked at, and popped for good when beaten. One
  request looks at each class a constant number of times, not once per arrival.

Means are float64 sums in worker order, divided by the count. The bounds are the same sums with 0 or 1 in place of what
is awaited. Rounding is monotone in every term, so with FP32 scores the bounds hold exactly, not only up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

from sensai_serve.merge.rules import Verdict

_Key = tuple[bool, float, int]


class Rule:
    """One input's vote. See `sensai_serve.merge.rules.Rule` for the arguments."""

    __slots__ = ("_arrived", "_best", "_best_key", "_copies", "_high", "_low", "_open", "_rivals", "_slots",
                 "_threshold", "_votes")  # fmt: skip

    def __init__(self, slots: Sequence[Sequence[tuple[int, int]]], copies: Sequence[int], threshold: float) -> None:
        self._slots = slots
        self._copies = copies
        self._threshold = threshold
        self._low = [[0.0] * n for n in copies]  # awaited and erased copies count 0
        self._high = [[1.0] * n for n in copies]  # awaited copies count 1, erased ones 0
        self._open = list(copies)  # arrived or awaited
        self._arrived = [0] * len(copies)
        self._votes = [0] * len(copies)
        self._best = -1
        self._best_key: _Key = (False, -1.0, 0)
        self._rivals = list(range(len(copies)))

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """The copies of one worker, each in [0, 1], have arrived."""
        threshold = self._threshold
        for (c, slot), score in zip(self._slots[worker], scores, strict=True):
            self._low[c][slot] = self._high[c][slot] = score
            self._arrived[c] += 1
            if score >= threshold:
                self._votes[c] += 1
            self._raise_lower_key(c)

    def erase(self, worker: int) -> None:
        """The copies of one worker will not come."""
        for c, slot in self._slots[worker]:
            self._high[c][slot] = 0.0
            self._open[c] -= 1
            if self._arrived[c]:
                self._raise_lower_key(c)

    def decided(self) -> bool:
        """No copy still awaited can change the class, whatever it says and whether it comes or not."""
        best, best_key, rivals = self._best, self._best_key, self._rivals
        if best < 0:
            return False
        while rivals:
            rival = rivals[-1]
            if rival != best and self._open[rival] and self._upper_key(rival) > best_key:
                return False
            rivals.pop()
        return True

    def certain(self) -> bool:
        """No copy that is missing, awaited or erased, could have changed the class."""
        best = self.verdict().class_id
        if best < 0:
            return False
        n = self._copies[best]
        lowest: _Key = (2 * self._votes[best] > n, _total(self._low[best]) / n, -best)
        for c, n in enumerate(self._copies):
            if c == best:
                continue
            absent = n - self._arrived[c]
            if (2 * (self._votes[c] + absent) > n, (_total(self._low[c]) + absent) / n, -c) > lowest:
                return False
        return True

    def verdict(self) -> Verdict:
        """The outcome over the copies that have arrived."""
        best, best_key = -1, (False, -1.0, 0)
        first = second = 0.0
        scores = []
        for c, (low, arrived, votes) in enumerate(zip(self._low, self._arrived, self._votes, strict=True)):
            mean = _total(low) / arrived if arrived else 0.0
            scores.append(mean)
            if mean > first:
                first, second = mean, first
            elif mean > second:
                second = mean
            if arrived and (key := (2 * votes > arrived, mean, -c)) > best_key:
                best, best_key = c, key
        return Verdict(scores, self._votes, self._arrived, first - second, best, best_key[0])

    def _raise_lower_key(self, c: int) -> None:
        n = self._open[c]
        key = (2 * self._votes[c] > n, _total(self._low[c]) / n, -c)
        if c == self._best:
            self._best_key = key
        elif key > self._best_key:
            if self._best >= 0:
                self._rivals.append(self._best)
            self._best, self._best_key = c, key

    def _upper_key(self, c: int) -> _Key:
        n = self._open[c]
        return (2 * (self._votes[c] + n - self._arrived[c]) > n, _total(self._high[c]) / n, -c)


def _total(copies: Sequence[float]) -> float:
    # Not sum(): from Python 3.12 on it compensates rounding, and the bounds would not be the same sums any more.
    total = 0.0
    for score in copies:
        total += score
    return total
