"""The health of workers: who is ejected or quarantined, who comes back, and who disagrees with the others."""

from __future__ import annotations

import numpy as np
import pytest

from sensai_serve.assignment import binary, cyclic, full
from sensai_serve.merge import MergePlan, merge
from serving.engine.workers.health import FAILED_RUNS, RECOVERED_PROBES, SLOW_SAMPLES, Health, State, disagreements


def live(health: Health) -> Health:
    for worker in range(len(health.workers)):
        health.came_up(worker)
    return health


def test_a_straggler_is_ejected_after_some_requests_and_comes_back_after_fast_probes() -> None:
    health = live(Health(cyclic(10, (0, 1, 3)), eject=True))
    for _ in range(SLOW_SAMPLES):
        assert health.workers[3].state is State.LIVE
        health.record_latencies([(w, 0.5 if w == 3 else 0.001) for w in range(10)])
    assert health.workers[3].state is State.EJECTED
    assert health.typical_s == pytest.approx(0.001)
    health.record_probe(3, 0.4)
    for _ in range(RECOVERED_PROBES):
        assert health.workers[3].state is State.EJECTED
        health.record_probe(3, 0.001)
    assert health.workers[3].state is State.LIVE


def test_a_worker_whose_runs_fail_is_ejected_whatever_depends_on_it_and_comes_back_after_sound_probes() -> None:
    health = live(Health(binary(4), eject=False))
    for _ in range(FAILED_RUNS - 1):
        health.record_failure(2)
    health.record_scores([2])
    health.record_failure(2)
    assert health.covered
    for _ in range(FAILED_RUNS):
        health.record_failure(2)
    assert health.workers[2].state is State.EJECTED
    assert not health.covered
    for seconds in (0.001, 0.001, None, 0.001, 0.001):
        health.record_probe(2, seconds)
    assert not health.covered
    health.record_probe(2, 0.001)
    assert health.covered


def test_without_patience_nobody_is_ejected() -> None:
    health = live(Health(cyclic(10, (0, 1, 3)), eject=False))
    for _ in range(50):
        health.record_latencies([(w, 0.5 if w == 3 else 0.001) for w in range(10)])
    assert health.ejected() == []


def test_the_last_live_worker_of_a_class_stays() -> None:
    health = live(Health(binary(4), eject=True))
    for _ in range(50):
        health.record_latencies([(w, 0.5 if w == 2 else 0.001) for w in range(4)])
    health.record_judgement(1, sound=False)
    assert health.admitted() == [0, 1, 2, 3]
    coded = live(Health(cyclic(3, (0, 1)), eject=True))
    coded.went_down(0)
    coded.record_judgement(1, sound=False)
    coded.record_judgement(2, sound=False)
    assert coded.covered


def test_a_worker_that_comes_back_starts_anew() -> None:
    health = live(Health(cyclic(4, (0, 1)), eject=True))
    health.record_judgement(2, sound=False)
    assert health.workers[2].state is State.QUARANTINED
    health.came_up(2)
    assert (health.workers[2].state, health.workers[2].restarts) == (State.LIVE, 1)


def test_disagreement_is_counted_against_the_others_and_only_where_they_agree() -> None:
    plan = MergePlan(cyclic(3, (0, 1, 2)))
    scores = [np.array([[0.9, 0.9, 0.1]], np.float32) for _ in range(3)]
    rows = plan.assignment.rows
    for worker, row in enumerate(rows):  # the same opinion of each class, in each worker's order
        scores[worker] = np.array([[0.9 if c == 0 else 0.1 for c in row]], np.float32)
    scores[2] = 1 - scores[2]
    answer = merge(plan, scores)
    assert dict(disagreements(plan.assignment, plan.thresholds, answer, [(2, scores[2])])) == {2: (3, 3)}
    # The others of worker 0 are one that agrees with it and one that does not: nobody to believe.
    assert dict(disagreements(plan.assignment, plan.thresholds, answer, [(0, scores[0])])) == {0: (0, 0)}
    late = merge(plan, [scores[0], scores[1], None])
    assert dict(disagreements(plan.assignment, plan.thresholds, late, [(2, scores[2])])) == {2: (3, 3)}


def test_a_worker_may_take_as_long_as_its_runs_cost() -> None:
    """A large member of an ensemble is no straggler; it is one where it takes longer than it should."""
    costs, usual = (1.0, 1.0, 60.0), {0: 0.001, 1: 0.001, 2: 0.06}
    alike, unlike = (live(Health(full(4, 3), eject=True, costs=given)) for given in ((), costs))
    for health in (alike, unlike):
        for _ in range(2 * SLOW_SAMPLES):
            health.record_latencies(list(usual.items()))
    assert alike.ejected() == [2]
    assert unlike.ejected() == []
    assert unlike.typical_s == pytest.approx(0.06)
    assert unlike.typical_of([0, 1]) == pytest.approx(0.001)
    assert unlike.typical_of([1, 2]) == pytest.approx(0.06)
    for _ in range(SLOW_SAMPLES):
        unlike.record_latencies([(0, 0.05), (1, 0.001), (2, 0.06)])
    assert unlike.ejected() == [0]
    for _ in range(SLOW_SAMPLES):
        unlike.record_latencies([(1, 0.001), (2, 1.0)])
    assert unlike.ejected() == [0, 2]
    for _ in range(RECOVERED_PROBES):
        unlike.record_probe(2, 0.06)
    assert unlike.ejected() == [0]
