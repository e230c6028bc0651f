"""An answer that is given at once is the one that a collector gives of the same scores, whatever they are."""

from __future__ import annotations

import itertools
from unittest.mock import Mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from merge_requests import assignments

from sensai_serve.assignment import Assignment
from sensai_serve.merge import Answer, Collector, MergePlan, Wait
from serving.engine.at_once import WAITS, AtOnce
from serving.engine.intake.admission import Admission
from serving.engine.workers.health import State, WorkerHealth

INPUT = np.zeros((1, 2), np.float32)
score = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1, width=32).map(abs))


class GivenScores:
    """A backend whose workers give the scores that a test says."""

    def __init__(self, scores: list[float] | None) -> None:
        self._scores = scores

    def run_at_once(self, inputs: np.ndarray) -> np.ndarray | None:
        return None if self._scores is None else np.array(self._scores, np.float32)


@st.composite
def plans(draw: st.DrawFn) -> MergePlan:
    return MergePlan(draw(assignments()), draw(st.sampled_from(["majority", "mean", "log"])))


def at_once(plan: MergePlan, scores: list[float] | None, admission: Admission | None = None) -> AtOnce:
    workers = [WorkerHealth(state=State.LIVE) for _ in plan.widths]
    return AtOnce(plan, GivenScores(scores), workers, admission or Admission(4))


def collected(plan: MergePlan, scores: list[float], wait: Wait) -> Answer:
    """The answer of a collector that is given one worker's scores after the other's until it wants no more."""
    collector = Collector(plan, 1, wait)
    for worker, (start, end) in enumerate(itertools.pairwise(itertools.accumulate(plan.widths, initial=0))):
        collector.add(worker, np.array([scores[start:end]], np.float32))
        if collector.done:
            break
    return collector.answer()


@given(plans(), st.data(), st.sampled_from(sorted(WAITS)))
def test_it_is_what_a_collector_says(plan: MergePlan, data: st.DataObject, wait: Wait) -> None:
    n = sum(plan.widths)
    scores = data.draw(st.lists(score, min_size=n, max_size=n))
    answered = at_once(plan, scores).answer(INPUT, wait)
    assert answered is not None
    answer, expected = answered.reply.answer, collected(plan, scores, wait)
    assert repr(answer) == repr(expected)
    assert [vars_of(row) for row in answer.rows] == [vars_of(row) for row in expected.rows]
    arrivals = answered.reply.result.arrivals
    assert tuple(arrivals) == expected.arrived
    given_scores = [float(s) for arrival in arrivals.values() for s in arrival.scores[0]]
    assert given_scores == scores[: len(given_scores)]


def vars_of(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__slots__}  # type: ignore[attr-defined]


@given(plans(), st.data())
def test_scores_that_are_none_are_left_to_the_usual_way(plan: MergePlan, data: st.DataObject) -> None:
    n = sum(plan.widths)
    scores = data.draw(st.lists(score, min_size=n, max_size=n))
    scores[data.draw(st.integers(0, n - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, -0.001, 1.001]))
    for wait in sorted(WAITS):
        assert at_once(plan, scores).answer(INPUT, wait) is None


def test_a_rule_that_raises_is_left_to_the_usual_way(monkeypatch) -> None:
    plan = MergePlan(Assignment(((0, 1), (0, 1)), 2))
    monkeypatch.setattr(plan.rule_type, "verdict", Mock(side_effect=ZeroDivisionError))
    assert at_once(plan, [0.9, 0.1] * 2).answer(INPUT, "all") is None


def test_it_needs_a_place_at_the_workers_and_all_of_them() -> None:
    plan = MergePlan(Assignment(((0,), (1,)), 2))
    admission = Admission(2, places=1)
    assert at_once(plan, [0.9, 0.1], admission).answer(INPUT, "decided") is not None
    assert admission.in_flight == 0
    assert admission.turn_now()
    assert at_once(plan, [0.9, 0.1], admission).answer(INPUT, "decided") is None
    assert at_once(plan, None).answer(INPUT, "decided") is None
    assert at_once(plan, [0.9]).answer(INPUT, "decided") is None
    workers = [WorkerHealth(state=State.LIVE), WorkerHealth(state=State.QUARANTINED)]
    assert AtOnce(plan, GivenScores([0.9, 0.1]), workers, Admission(4)).answer(INPUT, "decided") is None
