"""Thresholds of the wait ``confident``: by hand, and what they do to requests."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import Assignment, binary, cyclic, full
from sensai_serve.errors import InputError, RequestError
from sensai_serve.merge import Collector, MergePlan, merge
from sensai_serve.merge.confidence import Confidence, lead, least_copies
from sensai_serve.merge.fit_confidence import fit_confidence
from sensai_serve.merge.lost_workers import ScoredInputs
from sensai_serve.merge.order import ask_order

TWO = MergePlan(full(2, 3), "mean")


def rows(*of: float) -> np.ndarray:
    """Scores [N, 2] of one worker from its scores of class 0."""
    return np.array([[one, 1 - one] for one in of], np.float32)


def test_the_threshold_is_the_smallest_lead_above_which_enough_are_right() -> None:
    # After one worker the leads are 0.8, 0.6, 0.4 and 0.2; the others change the class of the third input alone.
    scores = [rows(0.9, 0.8, 0.7, 0.6), rows(0.9, 0.8, 0.1, 0.6), rows(0.9, 0.8, 0.1, 0.6)]
    found = fit_confidence(ScoredInputs(TWO, scores), order=(0, 1, 2))
    assert found is not None
    assert found.thresholds[0] == pytest.approx(0.6)
    assert found.stopped[0] == 0.5
    assert (found.inputs, found.agreement, found.order) == (4, 0.999, (0, 1, 2))
    generous = fit_confidence(ScoredInputs(TWO, scores), order=(0, 1, 2), agreement=0.75)
    assert generous is not None
    assert generous.thresholds[0] == pytest.approx(0.2)
    assert generous.stopped[0] == 1.0


def test_where_no_lead_is_good_enough_nothing_stops() -> None:
    scores = [rows(0.9), rows(0.1), rows(0.1)]
    found = fit_confidence(ScoredInputs(TWO, scores), order=(0, 1, 2))
    assert found is not None
    assert found.thresholds[0] == math.inf
    assert found.stopped == (0.0, 0.0)  # random orders may stop after two workers, this one has a lead of 0 by then


def test_without_copies_or_inputs_there_is_nothing_to_fit() -> None:
    assert fit_confidence(ScoredInputs(MergePlan(binary(2)), [rows(0.9)[:, :1]] * 2)) is None
    assert fit_confidence(ScoredInputs(TWO, [np.zeros((0, 2), np.float32)] * 3)) is None
    with pytest.raises(InputError, match="agreement is 0, expected more than 0 and at most 1"):
        fit_confidence(ScoredInputs(TWO, [rows(0.9)] * 3), agreement=0)


def test_a_class_that_nobody_has_scored_makes_an_answer_unsure() -> None:
    assignment = cyclic(4, (0, 1))
    plan = MergePlan(assignment, confidence=Confidence((0.0,), (0, 2, 1, 3), 0.999, 1, (1.0,)))
    collector = Collector(plan, 1, "confident")
    collector.add(0, np.array([[0.6, 0.0]], np.float32))
    assert not collector.done
    collector.add(2, np.array([[0.0, 0.0]], np.float32))
    assert collector.done
    answer = collector.answer()
    assert (answer.class_id[0], answer.arrived, answer.missing) == (0, (0, 2), (1, 3))
    assert (answer.decided_early, answer.exact, answer.complete) == (True, False, False)


def test_a_class_whose_copies_are_lost_is_not_waited_for() -> None:
    plan = MergePlan(cyclic(4, (0, 1)), confidence=Confidence((0.5,), (0, 2, 1, 3), 0.999, 1, (1.0,)))
    collector = Collector(plan, 1, "confident")
    for worker in (2, 1):  # the copies of class 2
        collector.erase(worker)
    collector.add(3, np.array([[0.0, 0.9]], np.float32))
    assert not collector.done  # class 1 awaits its last copy
    collector.add(0, np.array([[0.9, 0.0]], np.float32))
    assert collector.done
    assert collector.answer().class_id[0] == 0


def test_a_batch_stops_when_each_of_its_inputs_was_sure() -> None:
    plan = replace(TWO, confidence=Confidence((0.5, 0.1), (0, 1, 2), 0.999, 1, (0.5, 0.1)))
    collector = Collector(plan, 2, "confident")
    collector.add(0, rows(0.9, 0.6))
    assert not collector.done
    collector.add(1, rows(0.5, 0.9))
    assert collector.done
    assert not collector.answer().exact


def test_an_early_answer_that_is_decided_is_exact() -> None:
    plan = replace(TWO, confidence=Confidence((1.0, 0.5), (0, 1, 2), 0.999, 1, (0.5, 0.1)))
    collector = Collector(plan, 1, "confident")
    for worker in (0, 1):
        collector.add(worker, rows(1.0))
    answer = collector.answer()
    assert (answer.decided_early, answer.exact, answer.complete) == (True, True, True)


def test_confident_without_thresholds_is_refused() -> None:
    with pytest.raises(RequestError, match=r"no thresholds for it, expected one of decided, all, quorum, first$"):
        Collector(TWO, 1, "confident")


def test_workers_are_asked_so_that_classes_are_covered_evenly() -> None:
    for assignment, first in ((cyclic(9, (0, 1, 2)), 3), (cyclic(10, (0, 1, 3)), 5), (binary(4), 4)):
        order = ask_order(assignment)
        assert sorted(order) == list(range(assignment.n_workers))
        covered = {c for worker in order[:first] for c in assignment.rows[worker]}
        assert covered == set(range(assignment.n_classes))
    assert ask_order(full(3, 4), lambda asked, equal: equal[-1]) == (3, 2, 1, 0)
    uneven = Assignment(((0,), (1,), (0, 1, 2)), 3)
    assert ask_order(uneven)[0] == 2


def test_of_equal_workers_the_one_that_agrees_most_often_is_asked_first() -> None:
    right = rows(0.9, 0.9, 0.1, 0.1)
    found = fit_confidence(ScoredInputs(TWO, [rows(0.2, 0.2, 0.8, 0.2), right, right]))
    assert found is not None
    assert found.order[0] == 1


def test_of_too_many_inputs_a_part_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensai_serve.merge.fit_confidence.MOST_NUMBERS", 60)
    scores = [rows(*np.random.default_rng(worker).random(50)) for worker in range(3)]
    found = fit_confidence(ScoredInputs(TWO, scores))
    assert found is not None
    assert found.inputs == 10


@given(seed=st.integers(0, 2**32 - 1), agreement=st.sampled_from([0.6, 0.8, 1.0]))
def test_no_smaller_lead_would_do(seed: int, agreement: float) -> None:
    random = np.random.default_rng(seed)
    plan = MergePlan(cyclic(5, (0, 1, 3)), "mean")
    shared = random.random((15, 5))
    scores = [
        (0.6 * shared[:, list(r)] + 0.4 * random.random((15, 3))).astype(np.float32) for r in plan.assignment.rows
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sensai_serve.merge.fit_confidence.ORDERS", 0)
        found = fit_confidence(ScoredInputs(plan, scores), agreement=agreement)
    assert found is not None
    traces: list[
        list[tuple[float, bool]]
    ] = []  # of each input, while every class has one copy: lead, and if it is right
    for at in range(15):
        collector, whole, trace = Collector(plan, 1, "all"), merge(plan, [s[at : at + 1] for s in scores]), []
        for worker in found.order:
            collector.add(worker, scores[worker][at : at + 1])
            answer = collector.answer()
            if least_copies(answer.copies[0].tolist(), plan.copies) == 1:
                trace.append((lead(answer.rows[0]), bool(answer.class_id == whole.class_id)))
        traces.append(trace)

    def stops(threshold: float) -> list[bool | None]:
        return [next((right for of, right in trace if of >= threshold), None) for trace in traces]

    def enough(threshold: float) -> bool:
        stopped = [right for right in stops(threshold) if right is not None]
        return sum(stopped) >= agreement * len(stopped)

    candidates = sorted({of for trace in traces for of, _ in trace})
    assert stops(found.thresholds[0]) == stops(next((one for one in candidates if enough(one)), math.inf))
