"""The merge: the vote, and that what is decided early is what waiting for all would have said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from merge_requests import requests

from sensai_serve.assignment import Assignment, binary, cyclic
from sensai_serve.errors import RequestError
from sensai_serve.merge import WAITS, Collector, MergePlan, merge, parse_wait


def naive_class(plan: MergePlan, scores: dict[int, np.ndarray]) -> int:
    """The merge in its definition's words: float64, copies summed in worker order, no state and no shortcuts."""
    best, best_key = -1, None
    for c, workers in enumerate(plan.assignment.workers_of):
        copies = [float(scores[w][plan.assignment.rows[w].index(c)]) for w in workers if w in scores]
        if not copies:
            continue
        total = 0.0
        for copy in copies:
            total += copy
        votes = sum(copy >= plan.threshold for copy in copies)
        key = (2 * votes > len(copies), total / len(copies), -c)
        if best_key is None or key > best_key:
            best, best_key = c, key
    return best


@given(requests())
def test_decided_is_what_waiting_for_all_would_have_said(request_: tuple) -> None:
    assignment, scores, events = request_
    plan = MergePlan(assignment)
    collector = Collector(plan, 1, "decided")
    early = None
    for worker, arrives in events:
        if arrives:
            assert collector.add(worker, scores[worker])
        else:
            collector.erase(worker)
        if collector.done and early is None:
            early = collector.answer()
    assert early is not None
    present = {w: scores[w][0] for w, arrives in events if arrives}
    assert early.class_id[0] == naive_class(plan, present)
    if early.decided_early:
        assert len(early.missing) > 0
    if early.complete:
        assert early.class_id[0] == naive_class(plan, {w: s[0] for w, s in enumerate(scores)})


@given(st.integers(2, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_batch_says_what_its_rows_say_alone(n_rows: int, offset: int, random) -> None:
    plan = MergePlan(cyclic(10, (0, offset, 5)))
    rows = plan.assignment.rows
    scores = [np.array([[random.random() for _ in row] for _ in range(n_rows)], np.float32) for row in rows]
    lost = random.randrange(10)
    whole = merge(plan, [None if w == lost else s for w, s in enumerate(scores)])
    for i in range(n_rows):
        alone = merge(plan, [None if w == lost else s[i : i + 1] for w, s in enumerate(scores)])
        assert (alone.scores[0] == whole.scores[i]).all()
        assert alone.class_id[0] == whole.class_id[i]
        assert alone.margin[0] == whole.margin[i]


def one_hot(plan: MergePlan, label: int) -> list[np.ndarray]:
    return [np.array([[0.9 if c == label else 0.1 for c in row]], np.float32) for row in plan.assignment.rows]


@pytest.mark.parametrize(("wait", "copies"), [("all", 3), ("quorum", 2), ("first", 1)])
def test_waits_end_with_the_arrival_that_gives_every_class_its_copies(wait: str, copies: int) -> None:
    plan = MergePlan(cyclic(10, (0, 1, 3)))
    collector = Collector(plan, 1, parse_wait(wait))
    for worker, scores in enumerate(one_hot(plan, 4)):
        assert collector.answer().copies[0].min() < copies
        collector.add(worker, scores)
        if collector.done:
            break
    assert collector.answer().copies[0].min() == copies


def test_a_clear_vote_is_decided_before_all_arrive_and_says_so() -> None:
    plan = MergePlan(cyclic(10, (0, 1, 3)))
    collector = Collector(plan)
    fed = 0
    for worker, scores in enumerate(one_hot(plan, 4)):
        if collector.done:
            break
        collector.add(worker, scores)
        fed += 1
    answer = collector.answer()
    assert fed < 10
    assert (answer.class_id[0], answer.decided_early, answer.complete, answer.elected) == (4, True, True, True)
    assert answer.arrived == tuple(range(fed))
    assert answer.missing == tuple(range(fed, 10))


def test_without_redundancy_every_copy_is_awaited() -> None:
    plan = MergePlan(binary(4))
    collector = Collector(plan)
    for worker, scores in enumerate(one_hot(plan, 0)):
        assert not collector.done
        collector.add(worker, scores)
    assert collector.done
    assert not collector.answer().decided_early


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.001, 1.001])
def test_a_score_that_is_none_erases_its_worker(bad: float) -> None:
    plan = MergePlan(cyclic(10, (0, 1, 3)))
    collector = Collector(plan, 1, "all")
    for worker, scores in enumerate(one_hot(plan, 4)):
        given = scores.copy()
        if worker == 3:  # covers class 4
            given[0, 0] = bad
        assert collector.add(worker, given) == (worker != 3)
    answer = collector.answer()
    assert answer.missing == (3,)
    assert answer.class_id[0] == 4
    assert answer.copies[0, 4] == 2


def test_scores_of_another_shape_erase_their_worker() -> None:
    plan = MergePlan(binary(2))
    collector = Collector(plan, 1, "all")
    assert not collector.add(0, np.zeros((1, 2), np.float32))
    assert collector.add(1, np.zeros((1, 1), np.float32))
    assert collector.uncovered == (0,)


def test_a_class_without_a_copy_cannot_win_and_the_answer_is_incomplete() -> None:
    plan = MergePlan(binary(3))
    answer = merge(plan, [None, np.array([[0.2]], np.float32), np.array([[0.1]], np.float32)])
    assert (answer.class_id[0], answer.elected, answer.complete) == (1, False, False)
    assert answer.scores[0, 0] == 0
    nothing = merge(plan, [None, None, None])
    assert (nothing.class_id[0], nothing.complete, nothing.arrived) == (-1, False, ())


def test_ties_go_to_the_lower_index_and_votes_beat_means() -> None:
    plan = MergePlan(binary(3))
    tie = merge(plan, [np.array([[s]], np.float32) for s in (0.7, 0.7, 0.2)])
    assert tie.class_id[0] == 0
    assert tie.margin[0] == 0
    coded = MergePlan(Assignment(((0, 1), (0, 1), (0, 1)), 2))
    # class 0: two votes of three, mean 0.367; class 1: one vote, mean 0.6
    answer = merge(coded, [np.array([row], np.float32) for row in ((0.55, 0.45), (0.55, 0.45), (0.0, 0.9))])
    assert answer.class_id[0] == 0
    assert answer.votes[0].tolist() == [2, 1]
    assert answer.margin[0] == pytest.approx(0.6 - 1.1 / 3)


def test_late_and_repeated_scores_change_nothing() -> None:
    plan = MergePlan(binary(2))
    collector = Collector(plan, 1, "all")
    first, other = np.array([[0.9]], np.float32), np.array([[0.1]], np.float32)
    collector.add(0, first)
    collector.add(0, other)
    collector.erase(0)
    collector.add(1, other)
    assert collector.answer().scores[0].tolist() == pytest.approx([0.9, 0.1])


def test_an_unknown_wait_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="expected one of decided, confident, all, quorum, first"):
        parse_wait("soon")
    assert [parse_wait(w) for w in WAITS] == list(WAITS)


def test_an_answer_abstains_in_the_rows_that_are_too_unsure_and_in_no_other() -> None:
    plan = MergePlan(binary(2))
    answer = merge(plan, [np.array([[0.9], [0.4], [0.7]], np.float32), np.array([[0.1], [0.1], [0.6]], np.float32)])
    assert answer.class_id.tolist() == [0, 0, 0]
    assert answer.abstaining(unelected=True, margin=0).class_id.tolist() == [0, -1, 0]
    assert answer.abstaining(unelected=False, margin=0.2).class_id.tolist() == [0, 0, -1]
    assert answer.abstaining(unelected=False, margin=0) is answer
