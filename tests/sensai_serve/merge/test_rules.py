"""The rules beside the majority say what their definitions say, and only rules that were allowed are run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import Assignment, cyclic
from sensai_serve.errors import PluginError
from sensai_serve.merge import MergePlan
from sensai_serve.merge.collector import merge
from sensai_serve.merge.rules import ALLOWED, allow, find_rule
from sensai_serve.merge.rules.log import CLIP
from sensai_serve.merge.rules.majority import Rule as Majority


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
    assert find_rule(name) is Majority
    monkeypatch.delenv(ALLOWED)
    monkeypatch.setattr("sensai_serve.merge.rules._allowed", set())
    allow(name)
    assert find_rule(name) is Majority


def test_a_rule_that_there_is_not_is_said() -> None:
    with pytest.raises(PluginError, match="rules: nothing is called 'plurality', expected one of log, majority, mean"):
        find_rule("plurality")
