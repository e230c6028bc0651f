"""The rules beside the majority say what their definitions say, and only rules that were allowed are run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import Assignment, cyclic
from sensai_serve.errors import PluginError
from sensai_serve.merge import Collector, MergePlan, merge
from sensai_serve.merge.rules import ALLOWED, CopyLayout, _many_classes, allow, find_rule, majority, make_layout
from sensai_serve.merge.rules.log import CLIP


@pytest.mark.parametrize("rule", ["mean", "log"])
@given(seed=st.integers(0, 2**32 - 1), lost=st.sets(st.integers(0, 6), max_size=5))
def test_scores_are_the_mean_that_the_rule_is_called_after(rule: str, seed: int, lost: set[int]) -> None:
    plan = MergePlan(cyclic(7, (0, 1, 3)), rule)
    rows = np.random.default_rng(seed).random((7, 3)).astype(np.float32)
    answer = merge(plan, [None if w in lost else rows[w : w + 1] for w in range(7)])
    best = []
    for c, workers in enumerate(plan.assignment.workers_of):
        given_ = [float(rows[w][plan.assignment.rows[w].index(c)]) for w in workers if w not in lost]
        if rule == "log":
            clipped = [min(max(score, CLIP), 1 - CLIP) for score in given_]
            odds = [math.log(score / (1 - score)) for score in clipped]
            expected = 1 / (1 + math.exp(-sum(odds) / len(odds))) if odds else 0.0
        else:
            expected = sum(given_) / len(given_) if given_ else 0.0
        assert answer.scores[0, c] == pytest.approx(expected, abs=1e-5)
        best.append(expected)
    assert best[int(answer.class_id[0])] == pytest.approx(max(best), abs=1e-5)


def test_a_sure_worker_weighs_more_in_the_log_odds_than_in_the_mean() -> None:
    rows = ((0.999, 0.30), (0.30, 0.55), (0.30, 0.70))  # one worker is certain of class 0, the others lean to class 1
    scores = [np.array([row], np.float32) for row in rows]
    by = {rule: merge(MergePlan(Assignment(((0, 1),) * 3, 2), rule), scores) for rule in ("majority", "mean", "log")}
    assert {rule: int(answer.class_id[0]) for rule, answer in by.items()} == {"majority": 1, "mean": 0, "log": 0}
    assert not by["mean"].elected
    assert by["log"].margin[0] > by["mean"].margin[0]


def test_certainty_is_clipped() -> None:
    rows = ((1.0, 0.0), (0.0, 1.0), (0.4, 0.6))
    answer = merge(MergePlan(Assignment(((0, 1),) * 3, 2), "log"), [np.array([row], np.float32) for row in rows])
    assert answer.class_id[0] == 1


def test_a_bundle_cannot_allow_itself_code(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sensai_serve.merge.rules.majority:Rule"
    with pytest.raises(PluginError, match="is code that was not allowed here, expected one of log, majority, mean, or"):
        find_rule(name)
    monkeypatch.setenv(ALLOWED, f"other:Rule {name}")
    assert find_rule(name) is majority.Rule
    monkeypatch.delenv(ALLOWED)
    monkeypatch.setattr("sensai_serve.merge.rules._allowed", set())
    allow(name)
    assert find_rule(name) is majority.Rule


def test_a_rule_that_there_is_not_is_said() -> None:
    with pytest.raises(PluginError, match="rules: nothing is called 'plurality', expected one of log, majority, mean"):
        find_rule("plurality")


@st.composite
def votes(draw: st.DrawFn) -> tuple[CopyLayout, list[tuple[int, list[float] | None]]]:
    """Where copies go, and workers in the order in which their scores come, or None where they will not come."""
    n_workers, n_classes = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rows = [
        draw(st.permutations(sorted(draw(st.sets(st.integers(0, n_classes - 1), min_size=1)))))
        for _ in range(n_workers)
    ]
    for c in range(n_classes):
        if not any(c in row for row in rows):
            rows[draw(st.integers(0, n_workers - 1))].append(c)
    exact = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, float(np.nextafter(np.float32(1), np.float32(0)))])
    score = st.one_of(exact, st.floats(0, 1, width=32).map(abs))
    events = []
    for worker in draw(st.permutations(range(n_workers))):
        n = len(rows[worker])
        events.append((worker, draw(st.none() | st.lists(score, min_size=n, max_size=n))))
    return make_layout(rows, n_classes, draw(st.sampled_from([0.5, 0.3]))), events


@given(votes())
def test_a_vote_over_many_classes_is_the_very_same(
    vote: tuple[CopyLayout, list[tuple[int, list[float] | None]]],
) -> None:
    layout, events = vote
    one_by_one, in_numpy = majority.Rule(layout), _many_classes.Rule(layout)
    for worker, scores in events:
        for rule in (one_by_one, in_numpy):
            if scores is None:
                rule.erase(worker)
            else:
                rule.add(worker, scores)
        assert in_numpy.verdict() == one_by_one.verdict()
        assert in_numpy.decided() == one_by_one.decided()
        assert in_numpy.certain() == one_by_one.certain()


@pytest.mark.parametrize("n_classes", [_many_classes.MANY - 1, _many_classes.MANY, 300])
def test_an_answer_over_many_classes_is_what_the_rule_says_of_its_copies(n_classes: int) -> None:
    plan = MergePlan(cyclic([tuple(range(w, n_classes, 7)) for w in range(7)], (0, 1, 3)))
    random = np.random.default_rng(n_classes)
    for _ in range(20):
        scores = [random.random((1, width), np.float32) for width in plan.widths]
        scores[int(random.integers(7))][0, 0] = np.nan
        collector, rule = Collector(plan), majority.Rule(plan.layout)
        for worker, given_ in enumerate(scores):
            if collector.done:
                break
            sound = collector.add(worker, given_)
            assert sound == bool(np.isfinite(given_).all())
            if sound:
                rule.add(worker, given_[0].tolist())
            else:
                rule.erase(worker)
        assert collector.done
        assert collector.answer().rows == [rule.verdict()]
