"""Collects the copies of one request and says when enough have arrived."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.answer import Answer
from sensai_serve.merge.confidence import Confidence, lead, least_copies
from sensai_serve.merge.order import most_decisive
from sensai_serve.merge.plan import MergePlan, Wait
from sensai_serve.merge.rules import LabelRule, Rule


class Collector:
    """Collects the copies of one request. Not thread-safe: call it from one thread, or under a lock."""

    __slots__ = ("_arrived", "_awaited", "_confidence", "_decided", "_erased", "_many", "_needs", "_plan", "_rows",
                 "_sure", "_unmet", "_wait", "_widths", "done")  # fmt: skip

    def __init__(self, plan: MergePlan, n_inputs: int = 1, wait: Wait = "decided") -> None:
        """Start one request.

        Args:
            plan: the merge.
            n_inputs: number of inputs N.
            wait: what is waited for.

        Raises:
            RequestError: as `MergePlan.check_wait`.
        """
        self._plan = plan
        self._wait = wait
        self._many = plan.for_many_classes is not None
        rule, layout = plan.for_many_classes or plan.rule_type, plan.layout
        self._rows: list[Rule | LabelRule] = [rule(layout) for _ in range(n_inputs)]
        self._widths = plan.widths
        self._awaited = set(range(len(plan.widths)))
        self._arrived: set[int] = set()
        self._erased: set[int] = set()
        self._decided = 0  # rows[:decided] are decided
        if wait == "quorum":
            self._needs = [n // 2 + 1 for n in plan.copies]
        elif wait == "first":
            self._needs = [1] * len(plan.copies)
        else:
            self._needs = []
        self._confidence: Confidence | None = None
        if wait == "confident":
            plan.check_wait(wait)
            self._confidence, self._sure = plan.confidence, 0  # rows[:sure] were sure
        self._unmet = len(self._needs)
        self.done = False
        """Whether the wait is over."""

    @property
    def wait(self) -> Wait:
        """What is waited for."""
        return self._wait

    @property
    def awaited(self) -> frozenset[int]:
        """Workers that have neither answered nor been erased."""
        return frozenset(self._awaited)

    @property
    def uncovered(self) -> tuple[int, ...]:
        """Classes all of whose copies are erased."""
        if not self._erased:
            return ()
        return tuple(c for c, w in enumerate(self._plan.assignment.workers_of) if self._erased.issuperset(w))

    @property
    def can_spare_the_rest(self) -> bool:
        """Whether of every class at least one copy has arrived, and at least as many as are awaited."""
        for workers in self._plan.assignment.workers_of:
            arrived = sum(w in self._arrived for w in workers)
            awaited = sum(w in self._awaited for w in workers)
            if awaited and arrived < awaited:
                return False
        return True

    def next_of(self, workers: Sequence[int]) -> int:
        """The worker that is best asked next, if these are asked one after the other.

        That is the one whose copies come nearest to deciding the answer, where that ends the wait; else the first.

        Args:
            workers: whom to choose among, at least one.
        """
        if self._wait != "decided" or self.done or len(workers) == 1 or not self._plan.may_end_early:
            return workers[0]
        verdict = self._rows[self._decided].verdict()  # of the first input that is not decided
        return most_decisive(self._plan.assignment, verdict, workers, self._plan.position)

    def add(self, worker: int, scores: npt.NDArray[np.float32]) -> bool:
        """The scores of one worker have arrived.

        Args:
            worker: its id.
            scores: FP32 [N, k], one column per class of its row.

        Returns:
            False where they are no scores and were erased instead: another shape, NaN, infinite, or not in [0, 1].
        """
        if worker not in self._awaited:
            return True
        if scores.shape != (len(self._rows), self._widths[worker]):
            self.erase(worker)
            return False
        rows: Sequence[Sequence[float]] = scores if self._many else scores.tolist()  # type: ignore[assignment]
        if self._many:
            if not (scores.min() >= 0.0 and scores.max() <= 1.0):  # NaN compares false
                self.erase(worker)
                return False
        else:
            for row in rows:
                for score in row:
                    if not 0.0 <= score <= 1.0:
                        self.erase(worker)
                        return False
        self._awaited.discard(worker)
        self._arrived.add(worker)
        for rule, row in zip(self._rows, rows, strict=True):
            rule.add(worker, row)
        if self._needs:
            for c in self._plan.assignment.rows[worker]:
                self._needs[c] -= 1
                if self._needs[c] == 0:
                    self._unmet -= 1
        self._look()
        return True

    def erase(self, worker: int) -> None:
        """The scores of one worker will not be waited for."""
        if worker not in self._awaited:
            return
        self._awaited.discard(worker)
        self._erased.add(worker)
        for rule in self._rows:
            rule.erase(worker)
        self._look()

    def _look(self) -> None:
        if not self._awaited:
            self.done = True
        elif self._needs:
            self.done = self._unmet == 0
        elif self._wait == "decided":
            self.done = self._all_decided()
        elif self._confidence is not None:
            self.done = self._all_sure(self._confidence)

    def _all_decided(self) -> bool:
        # Once decided, always decided: a batch looks again only at its first undecided row.
        while self._decided < len(self._rows) and self._rows[self._decided].decided():
            self._decided += 1
        return self._decided == len(self._rows)

    def _all_sure(self, confidence: Confidence) -> bool:
        # A row that was sure is not looked at again: later copies are there because another row was not.
        threshold: float | None = None
        while self._sure < len(self._rows):
            verdict = self._rows[self._sure].verdict()
            if threshold is None:  # all rows have the same copies
                threshold = confidence.threshold(least_copies(verdict.copies, self._coming()))
            if lead(verdict) < threshold:
                return False
            self._sure += 1
        return True

    def _coming(self) -> Sequence[int]:
        """Of each class the copies that have arrived or are awaited."""
        coming = self._plan.copies
        if self._erased:
            workers_of = self._plan.assignment.workers_of
            coming = tuple(n - len(self._erased.intersection(w)) for n, w in zip(coming, workers_of, strict=True))
        return coming

    def answer(self) -> Answer:
        """The outcome over what has arrived; workers still awaited count as missing."""
        decided = bool(self._awaited) and self._all_decided()
        early = decided or (self._confidence is not None and self.done and bool(self._awaited))
        everything = not self._awaited and not self._erased
        return Answer(
            [rule.verdict() for rule in self._rows],
            arrived=self._plan.everybody if everything else tuple(sorted(self._arrived)),
            missing=() if everything else _others(self._arrived, len(self._widths)),
            decided_early=early,
            exact=decided or not self._awaited,
            complete=everything or (decided and not self._erased) or all(rule.certain() for rule in self._rows),
        )


def _others(workers: set[int], n_workers: int) -> tuple[int, ...]:
    return tuple(w for w in range(n_workers) if w not in workers)


def runs_in_turn(
    plan: MergePlan, scores: Sequence[npt.NDArray[np.float32]], wait: Wait = "decided", *, by_id: bool = False
) -> int:
    """Count the workers that run until the wait is over, one after the other as `Collector.next_of` says.

    Args:
        plan: the merge.
        scores: of every worker, FP32 [N, k].
        wait: what is waited for.
        by_id: count them in the order of their ids instead.
    """
    collector, left = Collector(plan, len(scores[0]), wait), list(plan.everybody if by_id else plan.order)
    while left and not collector.done:
        worker = left[0] if by_id else collector.next_of(left)
        left.remove(worker)
        collector.add(worker, scores[worker])
    return len(scores) - len(left)


def merge(plan: MergePlan, scores: Sequence[npt.NDArray[np.float32] | None]) -> Answer:
    """Merge the scores of all workers at once, for offline use and for checking.

    Args:
        plan: the merge.
        scores: of every worker, FP32 [N, k], one column per class of its row; None for one that is lost.
    """
    n_inputs = next((len(s) for s in scores if s is not None), 1)
    collector = Collector(plan, n_inputs, "all")
    for worker, given in enumerate(scores):
        if given is None:
            collector.erase(worker)
        else:
            collector.add(worker, given)
    return collector.answer()
