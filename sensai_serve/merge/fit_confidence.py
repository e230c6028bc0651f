"""Fits the thresholds of the wait ``confident``: how large a lead settles an answer before all copies are there.

Every input is merged copy by copy, with the workers asked in several orders: the bundle's own, and random ones, since
workers may be late or lost. One number of copies after the other, the threshold is the smallest lead such that of the
answers which stop there, enough equal the answer of all copies: of all orders together, and in the bundle's own.
Answers that stop are gone from then on, so the answers at later thresholds are those that were unsure before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import InputError
from sensai_serve.merge import MergePlan, merge
from sensai_serve.merge.confidence import Confidence, lead, leads, least_copies
from sensai_serve.merge.lost_workers import Labels, ScoredInputs
from sensai_serve.merge.order import ask_order
from sensai_serve.merge.rules import Verdict

AGREEMENT = 0.999
"""The fraction of early answers that equal those of all copies, where nobody says another."""
ORDERS = 6
"""Random orders that thresholds are fitted to besides the bundle's own."""
MOST_NUMBERS = 20_000_000
"""The most scores that are looked at at a time; of more inputs a part is drawn."""
COMPARED = 24
"""Up to so many workers the order is chosen by their scores; more are asked by what they cover alone."""
_Leads = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]


def fit_confidence(
    inputs: ScoredInputs, *, agreement: float = AGREEMENT, order: Sequence[int] | None = None, seed: int = 0
) -> Confidence | None:
    """Fit the thresholds of a bundle.

    Args:
        inputs: scores of all workers on inputs that nothing was trained on.
        agreement: the fraction of the answers stopped at each number of copies that must equal those of all copies.
        order: every worker once, the first asked first; chosen by what they cover and by their scores where None.
        seed: of the random orders, and of the inputs that are drawn where there are too many.

    Returns:
        The thresholds; None where no class has two copies, or there are no inputs.

    Raises:
        InputError: the agreement is not in (0, 1].
    """
    if not 0 < agreement <= 1:
        raise InputError(f"agreement is {agreement}, expected more than 0 and at most 1")
    plan = inputs.plan
    if max(plan.copies) < 2 or not len(inputs.scores[0]):
        return None
    inputs = _some(inputs, seed)
    partial = _Partial(inputs, inputs.labels())
    chosen = partial.order() if order is None else tuple(order)
    random = np.random.default_rng(seed)
    orders = [chosen, *(tuple(random.permutation(plan.everybody).tolist()) for _ in range(ORDERS))]
    steps = [_steps(plan, one) for one in orders]
    running = [np.arange(len(partial.truth)) for _ in orders]
    thresholds, stopped = [], []
    for copies in range(1, max(plan.copies)):
        traces = [partial.trace(running[at], one, steps[at].get(copies, ())) for at, one in enumerate(orders)]
        threshold = _smallest(traces, agreement)
        before = len(running[0])
        for at, trace in enumerate(traces):
            running[at] = running[at][~trace.reaches(threshold)]
        thresholds.append(threshold)
        stopped.append((before - len(running[0])) / len(partial.truth))
    return Confidence(tuple(thresholds), chosen, agreement, len(partial.truth), tuple(stopped))


def answer_in_turn(inputs: ScoredInputs) -> tuple[Labels, npt.NDArray[np.int64]]:
    """What the wait ``confident`` answers when workers are asked one by one, in the order of the thresholds.

    Args:
        inputs: scores of all workers; their plan has thresholds.

    Returns:
        Of each input its class [N], and the number of workers that it asks [N].
    """
    plan, confidence = inputs.plan, inputs.plan.confidence
    assert confidence is not None
    labels = inputs.labels()
    asked = np.full(len(labels), len(confidence.order), np.int64)
    partial, running = _Partial(inputs, labels), np.arange(len(labels))
    copies_after = {step: copies for copies, steps in _steps(plan, confidence.order).items() for step in steps}
    early = labels.copy()
    for step in sorted(copies_after):
        found, of = partial.answers(running, sorted(confidence.order[:step]))
        sure = of >= confidence.threshold(copies_after[step])
        early[running[sure]], asked[running[sure]] = found[sure], step
        running = running[~sure]
    return early, asked


def answers_in_order(inputs: ScoredInputs, order: Sequence[int]) -> tuple[Labels, _Leads]:
    """What inputs come to after 1, 2, ... workers of an order.

    Args:
        inputs: scores of all workers.
        order: every worker once.

    Returns:
        Classes [W, N], and by how much each leads [W, N].
    """
    partial, every = _Partial(inputs, inputs.labels()), np.arange(len(inputs.scores[0]))
    each = [partial.answers(every, sorted(order[:asked])) for asked in range(1, len(order) + 1)]
    return np.stack([labels for labels, _ in each]), np.stack([found for _, found in each])


def _some(inputs: ScoredInputs, seed: int) -> ScoredInputs:
    """The inputs, or as many random ones as fit into memory."""
    assignment, count = inputs.plan.assignment, len(inputs.scores[0])
    most = max(1, MOST_NUMBERS // (assignment.n_workers * assignment.n_classes))
    if count <= most:
        return inputs
    drawn = np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
    return ScoredInputs(inputs.plan, [scores[drawn] for scores in inputs.scores])


def _steps(plan: MergePlan, order: Sequence[int]) -> dict[int, list[int]]:
    """After how many workers, asked in this order, every class that awaits a copy has 1, 2, ... of them."""
    copies, found = [0] * plan.assignment.n_classes, dict[int, list[int]]()
    for asked, worker in enumerate(order[:-1], 1):
        for c in plan.assignment.rows[worker]:
            copies[c] += 1
        found.setdefault(least_copies(copies, plan.copies), []).append(asked)
    return found


@dataclass(frozen=True)
class _Trace:
    """What some inputs come to at one number of copies, worker by worker."""

    leads: _Leads
    """The lead [S, M] of each of M inputs after each of S workers."""
    right: npt.NDArray[np.bool_]
    """Whether its class [S, M] is then that of all copies."""

    def reaches(self, threshold: float) -> npt.NDArray[np.bool_]:
        """Whether each input [M] stops."""
        return np.asarray((self.leads >= threshold).any(axis=0), np.bool_)

    def events(self) -> tuple[_Leads, _Counts, _Counts]:
        """How the counts of stopped and of right answers change as the threshold falls.

        An input stops at the first worker whose lead is large enough. So each lead above all earlier ones is the
        threshold from which on, downwards, the input stops there, and no longer at the next such lead.

        Returns:
            Leads [E], changes of the number of stopped answers [E], and of the right ones among them [E].
        """
        at: list[_Leads] = [np.zeros(0)]
        stops, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        highest = np.full(self.leads.shape[1], -np.inf)
        for now, right in zip(self.leads, self.right, strict=True):
            rises = now > highest
            # At thresholds in (highest, now] the input stops here; at `highest` and below, where it stopped before.
            here, before = right[rises].astype(np.int64), highest[rises]
            again = np.isfinite(before)
            at += [now[rises], before[again]]
            stops += [np.ones_like(here), -np.ones_like(here[again])]
            rights += [here, -here[again]]
            highest[rises] = now[rises]
        return np.concatenate(at), np.concatenate(stops), np.concatenate(rights)


def _smallest(traces: Sequence[_Trace], agreement: float) -> float:
    """The smallest lead at which enough of the answers that stop are right, in the first trace and in all together."""
    events = [trace.events() for trace in traces]
    candidates = np.unique(np.concatenate([at for at, _, _ in events]))
    if not len(candidates):
        return math.inf

    def enough(of: Sequence[tuple[_Leads, _Counts, _Counts]]) -> npt.NDArray[np.bool_]:
        stopped, right = np.zeros(len(candidates), np.int64), np.zeros(len(candidates), np.int64)
        for at, stops, rights in of:
            places = np.searchsorted(candidates, at)
            np.add.at(stopped, places, stops)
            np.add.at(right, places, rights)
        stopped, right = np.cumsum(stopped[::-1])[::-1], np.cumsum(right[::-1])[::-1]
        return np.asarray(right >= agreement * stopped, np.bool_)

    fine = np.flatnonzero(enough(events) & enough(events[:1]))
    return float(candidates[fine[0]]) if len(fine) else math.inf


class _Partial:
    """Inputs merged over the workers that have been asked so far."""

    def __init__(self, inputs: ScoredInputs, truth: Labels) -> None:
        self._inputs = inputs
        self.truth = truth
        rule = inputs.plan.rule_type
        self._many = getattr(rule, "merge_many", None), getattr(rule, "scores_many", None)

    def trace(self, chosen: npt.NDArray[np.intp], order: Sequence[int], steps: Sequence[int]) -> _Trace:
        """What the inputs `chosen` [M] come to after so many workers of an order."""
        each = [self.answers(chosen, sorted(order[:asked])) for asked in steps]
        shape = (len(steps), len(chosen))
        found = np.array([of for _, of in each], np.float64).reshape(shape)
        right = np.array([labels == self.truth[chosen] for labels, _ in each], np.bool_).reshape(shape)
        return _Trace(found, right)

    def order(self) -> tuple[int, ...]:
        """Every worker once: classes are covered evenly, and of equal workers the one that agrees most often."""
        plan = self._inputs.plan
        if plan.assignment.n_workers > COMPARED:
            return ask_order(plan.assignment)
        every = np.arange(len(self.truth))

        def best(asked: Sequence[int], equal: Sequence[int]) -> int:
            def agreed(worker: int) -> float:
                labels, _ = self.answers(every, sorted((*asked, worker)))
                return float((labels == self.truth).mean())

            return max(equal, key=agreed)  # the first of equal ones

        return ask_order(plan.assignment, best)

    def answers(self, chosen: npt.NDArray[np.intp], workers: Sequence[int]) -> tuple[Labels, _Leads]:
        """Classes and leads [M] of some inputs over the copies of some workers, which are in ascending order."""
        plan = self._inputs.plan
        merge_many, scores_many = self._many
        if merge_many is not None and scores_many is not None:
            copies = self._inputs.copies[np.ix_(chosen, np.array(workers, np.intp))]
            labels = np.asarray(merge_many(copies, plan.threshold), np.int64)
            return labels, leads(np.asarray(scores_many(copies, plan.threshold), np.float64), labels)
        verdicts: list[Verdict] = []
        for at in chosen.tolist():
            given = [
                np.asarray(scores[at : at + 1], np.float32) if worker in workers else None
                for worker, scores in enumerate(self._inputs.scores)
            ]
            verdicts += merge(plan, given).rows
        return np.array([v.class_id for v in verdicts], np.int64), np.array([lead(v) for v in verdicts])
