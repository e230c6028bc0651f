"""Cascades: files are asked in the order of their cost, and the next only where those before are not sure.

A cascade is the wait ``confident`` with waves of one worker. Its thresholds are fitted to labels: as little work as
possible for a stated loss of accuracy. Answers merge all files asked so far (Wang et al., "Wisdom of Committees", 2022,
https://arxiv.org/abs/2012.01988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.confidence import Confidence
from sensai_serve.merge.fit_confidence import answers_in_order
from sensai_serve.merge.lost_workers import Labels, ScoredInputs, accuracy

CANDIDATES = 400
"""Leads that are tried as each threshold."""
ROUNDS = 8
"""Rounds in which each threshold is chosen anew, given the others."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cascade:
    """What a cascade is to be."""

    costs: tuple[float, ...]
    """Of a run of each worker, in any unit."""
    loss: float
    """The fraction of answers that may be wrong beyond those of the best worker alone."""

    @property
    def order(self) -> tuple[int, ...]:
        """The workers, the cheapest first."""
        return tuple(sorted(range(len(self.costs)), key=self.costs.__getitem__))


@dataclass(frozen=True)
class Asked:
    """What a cascade answered."""

    labels: Labels
    """Classes [N]."""
    depth: Labels
    """Number of workers [N] that were asked."""
    cost: float
    """Mean cost of an answer."""


def fit_cascade(inputs: ScoredInputs, truth: Labels, cascade: Cascade) -> tuple[float, ...]:
    """The thresholds of a cascade, one for each number of copies but the last.

    Args:
        inputs: scores of all workers, each of which covers every class.
        truth: true labels [N].
        cascade: what it is to be.

    Returns:
        The leads from which an answer is sure, infinity for never. Together they cost the least that was found for the
        accuracy of the best worker alone, less the loss; all workers are always asked where nothing reaches that.
    """
    labels, leads = answers_in_order(inputs, cascade.order)
    right = labels == truth
    costs = np.cumsum([cascade.costs[worker] for worker in cascade.order])
    enough = (best_alone(inputs, truth) - cascade.loss) * len(truth) - 1e-9
    stages = len(costs) - 1
    found: list[tuple[float, tuple[float, ...]]] = []
    for places in (range(stages), range(stages - 1, -1, -1)):
        thresholds = [math.inf] * stages
        for _ in range(ROUNDS):
            before = list(thresholds)
            for place in places:
                thresholds[place] = _choose(place, thresholds, leads, right, costs, enough)
            if thresholds == before:
                break
        found.append((_outcome(thresholds, leads, right, costs)[1], tuple(thresholds)))
    return min(found)[1]


def ask(inputs: ScoredInputs, cascade: Cascade, thresholds: Sequence[float]) -> Asked:
    """What a cascade answers.

    Args:
        inputs: scores of all workers.
        cascade: who is asked in which order, at what cost.
        thresholds: as `fit_cascade` gives them.
    """
    labels, leads = answers_in_order(inputs, cascade.order)
    stage = _stage(thresholds, leads)
    costs = np.cumsum([cascade.costs[worker] for worker in cascade.order])
    return Asked(labels[stage, np.arange(len(stage))], stage + 1, float(costs[stage].mean()))


def confidence_of(inputs: ScoredInputs, cascade: Cascade, thresholds: Sequence[float]) -> Confidence:
    """The thresholds of a cascade as a manifest keeps them, with how often early answers are those of all workers."""
    asked, everybody = ask(inputs, cascade, thresholds), inputs.labels()
    stopped = [float(np.mean(asked.depth == depth)) for depth in range(1, len(cascade.costs))]
    agreed = [
        float(np.mean((asked.labels == everybody)[asked.depth == depth]))
        for depth, share in enumerate(stopped, 1)
        if share
    ]
    least = max(min(agreed, default=1.0), 1e-6)
    return Confidence(tuple(thresholds), cascade.order, least, len(everybody), tuple(stopped))


def best_alone(inputs: ScoredInputs, truth: Labels) -> float:
    """The accuracy of the worker that is right most often alone."""
    everybody = range(inputs.plan.assignment.n_workers)
    return max(accuracy(inputs.labels([w for w in everybody if w != worker]), truth) for worker in everybody)


def _choose(
    place: int, thresholds: list[float], leads: Numbers, right: npt.NDArray[np.bool_], costs: Numbers, enough: float
) -> float:
    """The threshold at one place that costs the least, given the others."""
    candidates = np.unique(np.quantile(leads[place], np.linspace(0, 1, CANDIDATES), method="higher"))
    best = (math.inf, math.inf)
    for candidate in (*candidates.tolist(), math.inf):
        correct, cost = _outcome([*thresholds[:place], candidate, *thresholds[place + 1 :]], leads, right, costs)
        if correct >= enough:
            best = min(best, (cost, candidate))
    return best[1]


def _outcome(
    thresholds: Sequence[float], leads: Numbers, right: npt.NDArray[np.bool_], costs: Numbers
) -> tuple[float, float]:
    """How many answers are right, and what an answer costs."""
    stage = _stage(thresholds, leads)
    return float(right[stage, np.arange(len(stage))].sum()), float(costs[stage].mean())


def _stage(thresholds: Sequence[float], leads: Numbers) -> Labels:
    """The stage [N] at which each input stops, from 0."""
    sure = leads >= np.asarray([*thresholds, -math.inf])[:, None]
    return np.asarray(sure.argmax(axis=0), np.int64)
