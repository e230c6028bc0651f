"""Every merge rule does what `sensai_serve.merge.rules.Rule` says: deciding early gives what waiting would have given.

A new file in ``sensai_serve/merge/rules`` is tested here without a line changed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_requests import feed, requests, score

from sensai_serve.assignment import Assignment, cyclic
from sensai_serve.merge import Collector, MergePlan, Wait, merge
from sensai_serve.merge.confidence import Confidence, least_copies
from sensai_serve.merge.fit_confidence import fit_confidence
from sensai_serve.merge.lost_workers import ScoredInputs
from sensai_serve.plugins import available

every_rule = pytest.mark.parametrize("rule", available("sensai_serve.merge.rules"))

Scores = dict[int, np.ndarray]


def merged(plan: MergePlan, scores: Scores) -> int:
    """The class when these workers arrive, in their order, and no others."""
    given_ = [scores[w].reshape(1, -1) if w in scores else None for w in range(plan.assignment.n_workers)]
    return int(merge(plan, given_).class_id[0])


@every_rule
@given(request_=requests())
def test_workers_asked_in_the_most_decisive_order_say_what_all_would(rule: str, request_) -> None:
    assignment, scores, events = request_
    plan = MergePlan(assignment, rule)
    collector, left = Collector(plan, 1, "decided"), [worker for worker, arrives in events if arrives]
    present = {worker: scores[worker] for worker in left}
    for worker, arrives in events:
        if not arrives:
            collector.erase(worker)
    while not collector.done:
        chosen = collector.next_of(left)
        left.remove(chosen)
        assert collector.add(chosen, scores[chosen])
    assert collector.answer().class_id[0] == merged(plan, present)


@every_rule
@given(request_=requests(), data=st.data())
def test_decided_holds_whatever_the_missing_copies_say(rule: str, request_, data: st.DataObject) -> None:
    assignment, scores, events = request_
    plan = MergePlan(assignment, rule)
    collector = feed(plan, scores, events)
    assert collector.done
    answer = collector.answer()
    said = int(answer.class_id[0])
    arrived = {w: scores[w] for w in answer.arrived}
    assert answer.decided_early == bool(collector.awaited)
    present = {w: scores[w] for w, arrives in events if arrives}
    assert merged(plan, present) == said
    for worker in collector.awaited:
        if data.draw(st.booleans()):
            n = len(assignment.rows[worker])
            arrived[worker] = np.array(data.draw(st.lists(score, min_size=n, max_size=n)), np.float32)
    assert merged(plan, arrived) == said


@every_rule
@given(request_=requests(), data=st.data())
def test_complete_holds_whatever_the_lost_copies_would_have_said(rule: str, request_, data: st.DataObject) -> None:
    assignment, scores, events = request_
    plan = MergePlan(assignment, rule)
    answer = feed(plan, scores, events).answer()
    if not answer.complete:
        return
    whole = {w: scores[w] for w in answer.arrived}
    for worker in answer.missing:
        n = len(assignment.rows[worker])
        whole[worker] = np.array(data.draw(st.lists(score, min_size=n, max_size=n)), np.float32)
    assert merged(plan, whole) == answer.class_id[0]


@every_rule
@given(request_=requests())
def test_decided_is_not_later_than_it_must_be(rule: str, request_) -> None:
    """Where it still waits, some outcome of the awaited copies gives another class."""
    assignment, scores, events = request_
    plan = MergePlan(assignment, rule)
    for n_events in range(len(events)):
        collector = feed(plan, scores, events[:n_events])
        if collector.done:
            return
        arrived = {w: scores[w] for w, arrives in events[:n_events] if arrives}
        outcomes = {merged(plan, arrived)}
        for c in range(assignment.n_classes):
            for against in (
                False,
                True,
            ):  # all that is awaited is for c and against the rest, or reversed
                extreme = {w: np.array([(k == c) != against for k in assignment.rows[w]]) for w in collector.awaited}
                outcomes.add(merged(plan, arrived | {w: row.astype(np.float32) for w, row in extreme.items()}))
        assert len(outcomes) > 1


@every_rule
@given(request_=requests())
def test_order_of_arrival_changes_nothing(rule: str, request_) -> None:
    assignment, scores, events = request_
    plan, answers = MergePlan(assignment, rule), []
    for order in (events, events[::-1], sorted(events)):
        collector = Collector(plan, 1, "all")
        for worker, arrives in order:
            if arrives:
                collector.add(worker, scores[worker])
            else:
                collector.erase(worker)
        answers.append(collector.answer())
    for other in answers[1:]:
        for name in ("scores", "votes", "copies", "margin", "class_id"):
            assert (getattr(other, name) == getattr(answers[0], name)).all()
        assert (other.complete, other.elected) == (answers[0].complete, answers[0].elected)


@every_rule
@given(request_=requests())
def test_an_answer_makes_sense(rule: str, request_) -> None:
    assignment, scores, events = request_
    present = {w: scores[w] for w, arrives in events if arrives}
    given_ = [present.get(w) for w in range(assignment.n_workers)]
    answer = merge(MergePlan(assignment, rule), given_)
    best = int(answer.class_id[0])
    assert (best == -1) == (not present)
    assert (answer.scores >= 0).all()
    assert (answer.scores <= 1).all()
    assert ((answer.copies == 0) <= (answer.scores == 0)).all()
    assert (answer.votes <= answer.copies).all()
    assert answer.margin[0] >= 0
    if best >= 0:
        assert answer.copies[0, best] > 0
        assert answer.elected == (2 * answer.votes[0, best] > answer.copies[0, best])
    else:
        assert not answer.elected


@every_rule
def test_a_clear_answer_is_decided_before_all_arrive(rule: str) -> None:
    plan = MergePlan(cyclic(10, (0, 1, 3)), rule)
    collector = Collector(plan)
    for worker, row in enumerate(plan.assignment.rows):
        collector.add(worker, np.array([[1.0 if c == 4 else 0.0 for c in row]], np.float32))
        if collector.done:
            break
    answer = collector.answer()
    assert (answer.class_id[0], answer.decided_early, answer.complete, answer.elected) == (4, True, True, True)


@every_rule
def test_equal_classes_go_to_the_first(rule: str) -> None:
    answer = merge(MergePlan(Assignment(((0, 1, 2),) * 3, 3), rule), [np.array([[0.2, 0.7, 0.7]], np.float32)] * 3)
    assert (answer.class_id[0], answer.margin[0]) == (1, 0)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Assignment, list[np.ndarray]]:
    """A matrix with a class of several copies, and every worker's scores of some inputs, ties among them."""
    n_workers, n_classes = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    rows = [set(draw(st.sets(st.integers(0, n_classes - 1), min_size=1))) for _ in range(n_workers)]
    rows[0] = set(range(n_classes))
    random, n_inputs = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.integers(1, 30))
    steps = draw(st.sampled_from([2, 5, 1000]))
    shared = random.random((n_inputs, n_classes))
    scores = []
    for row in rows:
        own = 0.6 * shared[:, sorted(row)] + 0.4 * random.random((n_inputs, len(row)))
        scores.append((np.round(own * steps) / steps).astype(np.float32))
    return Assignment(tuple(tuple(sorted(row)) for row in rows), n_classes), scores


def stop(plan: MergePlan, scores: list[np.ndarray], at: int, wait: Wait) -> Collector:
    """One input's merge when the workers of the plan's order arrive one by one."""
    collector = Collector(plan, 1, wait)
    for worker in plan.order:
        if collector.done:
            break
        collector.add(worker, scores[worker][at : at + 1])
    return collector


@every_rule
@settings(deadline=None)
@given(scored_=scored(), agreement=st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_of_the_inputs_that_thresholds_were_fitted_on_enough_are_answered_as_by_all(
    rule: str, scored_, agreement: float
) -> None:
    assignment, scores = scored_
    plan = MergePlan(assignment, rule)
    confidence = fit_confidence(ScoredInputs(plan, scores), agreement=agreement)
    if confidence is None:
        assert max(plan.copies) == 1
        return
    plan = replace(plan, confidence=confidence)
    same: dict[int, list[bool]] = {}
    for at in range(len(scores[0])):
        collector = stop(plan, scores, at, "confident")
        answer, whole = collector.answer(), stop(plan, scores, at, "all").answer()
        assert answer.decided_early == bool(collector.awaited)
        if answer.exact:
            assert answer.class_id[0] == whole.class_id[0]
        if answer.decided_early:
            copies = least_copies(answer.copies[0].tolist(), plan.copies)
            same.setdefault(copies, []).append(bool(answer.class_id[0] == whole.class_id[0]))
    for copies, agreed in same.items():
        assert sum(agreed) >= agreement * len(agreed)
        assert len(agreed) == round(confidence.stopped[copies - 1] * confidence.inputs)


@every_rule
@given(request_=requests())
def test_thresholds_that_nothing_reaches_wait_for_all(rule: str, request_) -> None:
    assignment, scores, events = request_
    never = Confidence((np.inf,) * 5, tuple(range(assignment.n_workers)), 0.999, 1, (0.0,) * 5)
    plan, answers = MergePlan(assignment, rule, confidence=never), []
    for wait in ("confident", "all"):
        collector = Collector(plan, 1, wait)
        for worker, arrives in events:
            assert not collector.done
            if arrives:
                collector.add(worker, scores[worker])
            else:
                collector.erase(worker)
        assert collector.done
        answers.append(repr(collector.answer()))
    assert answers[0] == answers[1]


@every_rule
@given(scored_=scored())
def test_scores_of_many_inputs_are_those_of_each(rule: str, scored_) -> None:
    assignment, scores = scored_
    plan = MergePlan(assignment, rule)
    scores_many = getattr(plan.rule_type, "scores_many", None)
    if scores_many is not None:
        found = scores_many(ScoredInputs(plan, scores).copies, plan.threshold)
        assert (found == [row.scores for row in merge(plan, scores).rows]).all()
