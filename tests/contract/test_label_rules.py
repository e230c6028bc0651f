"""Every merge rule that takes sets of labels does what `sensai_serve.merge.rules.LabelRule` says.

A new file in ``sensai_serve/merge/rules`` whose rule has ``Labels`` is tested here without a line changed.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_requests import Events, assignments, feed

from sensai_serve.assignment import Assignment, cyclic
from sensai_serve.merge import Collector, MergePlan, merge
from sensai_serve.merge.fit_thresholds import fit_thresholds
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy
from sensai_serve.merge.rules import find_rule
from sensai_serve.plugins import available

RULES = [rule for rule in available("sensai_serve.merge.rules") if hasattr(find_rule(rule), "Labels")]
every_rule = pytest.mark.parametrize("rule", RULES)

# Few distinct values, some of them thresholds too: ties, and copies that just reach a threshold, are common.
edges = [0.0, 1.0, 0.5, 0.25, 0.75, 1e-30, float(np.nextafter(np.float32(0.5), np.float32(0)))]
score = st.one_of(st.sampled_from(edges), st.floats(0, 1, width=32).map(abs))
threshold = st.sampled_from([0.5, 0.25, 0.75, 0.05, 0.95, 1e-6, 1 - 1e-6])
fewer = settings(max_examples=settings().max_examples // 2)  # three rules and five properties


@st.composite
def requests(draw: st.DrawFn) -> tuple[Assignment, tuple[float, ...], list[np.ndarray], Events]:
    """A random matrix, a threshold of each class, random scores, and who arrives."""
    assignment = draw(assignments(4))
    widths, n_classes = map(len, assignment.rows), assignment.n_classes
    scores = [np.array([draw(st.lists(score, min_size=n, max_size=n))], np.float32) for n in widths]
    thresholds = tuple(draw(st.lists(threshold, min_size=n_classes, max_size=n_classes)))
    order = draw(st.permutations(range(assignment.n_workers)))
    return assignment, thresholds, scores, [(w, draw(st.integers(0, 3)) > 0) for w in order]


def plan_of(rule: str, assignment: Assignment, thresholds: tuple[float, ...]) -> MergePlan:
    return MergePlan(assignment, rule, task="multilabel", of_classes=thresholds)


def labels(plan: MergePlan, scores: dict[int, np.ndarray]) -> list[bool]:
    """The labels when these workers arrive, and no others."""
    answer = merge(plan, [scores.get(w) for w in range(plan.assignment.n_workers)])
    return answer.labels[0].tolist()


def drawn(data: st.DataObject, assignment: Assignment, worker: int) -> np.ndarray:
    n = len(assignment.rows[worker])
    return np.array([data.draw(st.lists(score, min_size=n, max_size=n))], np.float32)


@every_rule
@fewer
@given(request_=requests(), data=st.data())
def test_decided_labels_hold_whatever_the_missing_copies_say(rule: str, request_, data: st.DataObject) -> None:
    assignment, thresholds, scores, events = request_
    plan = plan_of(rule, assignment, thresholds)
    collector = feed(plan, scores, events)
    assert collector.done
    answer = collector.answer()
    assert answer.decided_early == bool(collector.awaited)
    assert labels(plan, {w: scores[w] for w, arrives in events if arrives}) == answer.labels[0].tolist()
    later = {w: drawn(data, assignment, w) for w in collector.awaited if data.draw(st.booleans())}
    assert labels(plan, {w: scores[w] for w in answer.arrived} | later) == answer.labels[0].tolist()


@every_rule
@fewer
@given(request_=requests(), data=st.data())
def test_only_labels_that_are_said_to_be_undecided_may_change(rule: str, request_, data: st.DataObject) -> None:
    assignment, thresholds, scores, events = request_
    plan = plan_of(rule, assignment, thresholds)
    answer = feed(plan, scores, events).answer()
    assert answer.complete == (not answer.undecided)
    whole = {w: scores[w] for w in answer.arrived} | {w: drawn(data, assignment, w) for w in answer.missing}
    for c, (said, then) in enumerate(zip(answer.labels[0].tolist(), labels(plan, whole), strict=True)):
        assert said == then or c in answer.undecided


@every_rule
@fewer
@given(request_=requests())
def test_it_waits_only_while_some_label_may_change(rule: str, request_) -> None:
    """While it waits, the awaited copies change some label if all of them say 0, or 1, or none of them comes."""
    assignment, thresholds, scores, events = request_
    plan = plan_of(rule, assignment, thresholds)
    for n_events in range(len(events)):
        collector = feed(plan, scores, events[:n_events])
        if collector.done:
            return
        arrived = {w: scores[w] for w, arrives in events[:n_events] if arrives}
        extremes = [
            {w: np.full((1, len(assignment.rows[w])), value, np.float32) for w in collector.awaited}
            for value in (0, 1)
        ]  # fmt: skip
        outcomes = {tuple(labels(plan, arrived | more)) for more in ({}, *extremes)}
        assert len(outcomes) > 1


@every_rule
@fewer
@given(request_=requests())
def test_an_answer_makes_sense(rule: str, request_) -> None:
    assignment, thresholds, scores, events = request_
    present = {w: scores[w] for w, arrives in events if arrives}
    plan = plan_of(rule, assignment, thresholds)
    answer = merge(plan, [present.get(w) for w in range(assignment.n_workers)])
    single = merge(MergePlan(assignment, rule), [present.get(w) for w in range(assignment.n_workers)])
    assert (answer.scores == single.scores).all()  # whatever the task, a class's score is the same
    assert (answer.copies == single.copies).all()
    assert (answer.votes <= answer.copies).all()
    assert not answer.labels[answer.copies == 0].any()
    assert answer.elected == bool(answer.labels.any())
    assert 0 <= answer.margin[0] <= 1
    unsure = answer.abstaining(unelected=False, margin=0.3)
    near = np.abs(answer.rows[0].scores - np.array(thresholds)) < 0.3
    assert unsure.abstained == tuple(np.flatnonzero(near))
    assert (unsure.labels[0] == (answer.labels[0] & ~near)).all()


@every_rule
@fewer
@given(request_=requests())
def test_many_inputs_get_what_each_gets_alone(rule: str, request_) -> None:
    assignment, thresholds, scores, events = request_
    plan, lost = plan_of(rule, assignment, thresholds), [w for w, arrives in events if not arrives]
    many = ScoredInputs(plan, [np.concatenate([one, 1 - one, one**2]) for one in scores])
    given_ = [None if w in lost else many.scores[w] for w in range(assignment.n_workers)]
    if len(lost) < assignment.n_workers:
        assert (many.labels(lost) == merge(plan, given_).labels).all()


@every_rule
def test_clear_labels_are_decided_before_all_arrive(rule: str) -> None:
    plan = MergePlan(cyclic(10, (0, 1, 3)), rule, task="multilabel")
    collector = Collector(plan)
    for worker, row in enumerate(plan.assignment.rows):
        if not collector.done and worker != 9:
            collector.add(worker, np.array([[float(c in (4, 6)) for c in row]], np.float32))
    answer = collector.answer()
    assert collector.done  # two copies of three that are sure decide a label, for or against
    assert (answer.decided_early, answer.complete, answer.undecided) == (True, True, ())
    assert np.flatnonzero(answer.labels[0]).tolist() == [4, 6]


@every_rule
def test_fitted_thresholds_are_no_worse_than_a_half(rule: str) -> None:
    random = np.random.default_rng(0)
    truth = random.random((200, 4)) < [0.1, 0.3, 0.5, 0.01]
    scores = [np.clip(0.3 * truth + 0.4 * random.random((200, 4)), 0, 1).astype(np.float32) for _ in range(3)]
    plan = MergePlan(Assignment(((0, 1, 2, 3),) * 3, 4), rule, task="multilabel")
    found = fit_thresholds(ScoredInputs(plan, scores), truth)
    assert found[3] == 0.5  # too few inputs have this label to fit anything to
    assert set(found[:3]) != {0.5}
    fitted = ScoredInputs(plan_of(rule, plan.assignment, found), scores)
    assert accuracy(fitted.labels(), truth) > accuracy(ScoredInputs(plan, scores).labels(), truth)
