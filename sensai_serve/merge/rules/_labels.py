"""What the rules share where an input has several labels at once: each class is decided for itself.

A class's label carries when the mean value of its arrived copies reaches the class's cut. A class none of whose copies
arrived carries no label, and stays undecided for as long as it awaits one.

Decided: a value lies between `LEAST` and `MOST` of its rule, so a class's mean lies between those that it has when all
awaited copies come with the least value, and with the most; a copy that does not come at all leaves the mean between
the two. A class is decided when the lower mean reaches its cut, or the upper one does not; a request when every class
is. Lower means only rise and upper means only fall as copies arrive or are erased: a decided class stays decided, and
is not looked at again.

As in `sensai_serve.merge.rules._means`, values are multiples of a power of two, so that their sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sensai_serve.merge.rules import CopyLayout, LabelVerdict


@dataclass(frozen=True, slots=True)
class LabelMath:
    """What a rule makes of copies."""

    value: Callable[[float, float], float]
    """Of a score in [0, 1] and its class's threshold: rising with the score, a multiple of a power of two."""
    cut: Callable[[float], float]
    """Of a class's threshold: its label carries from this mean value on."""
    pool: Callable[[Sequence[float]], float]
    """Of the scores of a class's arrived copies, in worker order, at least one: the score that a reply shows."""


class LabelVotes:
    """One input's merge by one vote for each class. See `sensai_serve.merge.rules.LabelRule`."""

    __slots__ = ("_arrived", "_copies", "_cuts", "_layout", "_least", "_math", "_most", "_open", "_sum", "_undecided",
                 "_votes")  # fmt: skip

    def __init__(self, layout: CopyLayout, math: LabelMath) -> None:
        """Start one input.

        Args:
            layout: where each copy belongs.
            math: what the rule makes of copies.
        """
        n_classes, thresholds = len(layout.copies), layout.thresholds
        self._layout, self._math = layout, math
        self._cuts = [math.cut(threshold) for threshold in thresholds]
        self._least = [math.value(0.0, threshold) for threshold in thresholds]
        self._most = [math.value(1.0, threshold) for threshold in thresholds]
        self._copies: list[float | None] = [None] * layout.starts[-1]  # scores that arrived, each at its place
        self._sum = [0.0] * n_classes  # of the values that arrived
        self._open = list(layout.copies)  # arrived or awaited
        self._arrived = [0] * n_classes
        self._votes = [0] * n_classes
        self._undecided = set(range(n_classes))

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """Take the copies of one worker, each in [0, 1]."""
        value, thresholds = self._math.value, self._layout.thresholds
        for (c, place), score in zip(self._layout.places[worker], scores, strict=True):
            self._copies[place] = score
            self._sum[c] += value(score, thresholds[c])
            self._arrived[c] += 1
            self._votes[c] += score >= thresholds[c]
            if self._settled(c, self._open[c]):
                self._undecided.discard(c)

    def erase(self, worker: int) -> None:
        """Stop awaiting the copies of one worker, which will not come."""
        for c, _ in self._layout.places[worker]:
            self._open[c] -= 1
            if not self._open[c] or self._settled(c, self._open[c]):
                self._undecided.discard(c)

    def decided(self) -> bool:
        """Whether no awaited copy can change a label, whatever it says and whether it comes or not."""
        return not self._undecided

    def certain(self) -> bool:
        """Whether no missing copy, awaited or erased, could have changed a label."""
        return not self._uncertain()

    def verdict(self) -> LabelVerdict:
        """Return the outcome over the copies that have arrived."""
        thresholds, starts, margin = self._layout.thresholds, self._layout.starts, 1.0
        scores, labels, best = list[float](), list[bool](), -1
        for c, arrived in enumerate(self._arrived):
            score = 0.0
            if arrived:
                score = self._math.pool([s for s in self._copies[starts[c] : starts[c + 1]] if s is not None])
                margin = min(margin, abs(score - thresholds[c]))
                if best < 0 or score > scores[best]:
                    best = c
            else:
                margin = 0.0
            scores.append(score)
            labels.append(arrived > 0 and self._sum[c] / arrived >= self._cuts[c])
        return LabelVerdict(
            scores, self._votes, self._arrived, margin, best, any(labels), labels, self._uncertain(), (), thresholds
        )

    def _uncertain(self) -> tuple[int, ...]:
        """The classes whose label a missing copy, awaited or erased, could have changed."""
        return tuple(
            c for c, (n, arrived) in enumerate(zip(self._layout.copies, self._arrived, strict=True))
            if arrived < n and not self._settled(c, n)
        )  # fmt: skip

    def _settled(self, c: int, n: int) -> bool:
        """Whether the label of a class stays as it is when copies come, up to `n`, or do not."""
        arrived = self._arrived[c]
        if not arrived:
            return False
        low = (self._sum[c] + (n - arrived) * self._least[c]) / n
        high = (self._sum[c] + (n - arrived) * self._most[c]) / n
        return low >= self._cuts[c] or high < self._cuts[c]
