"""Many inputs merged over many sets of workers give what the merge gives each input alone."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensai_serve import plugins
from sensai_serve.assignment import Assignment, cyclic
from sensai_serve.merge import MergePlan, lost_workers, merge
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy_curve, sets_of_workers
from sensai_serve.merge.rules import allow
from sensai_serve.merge.rules.majority import Rule as Majority

N = 12


class InputByInput(Majority):
    """The majority without a vectorised form, as a rule of somebody else's has none."""

    merge_many = None  # type: ignore[assignment]


allow(f"{__name__}:InputByInput")


@pytest.mark.parametrize("rule", [*plugins.available("sensai_serve.merge.rules"), f"{__name__}:InputByInput"])
@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_classes=st.integers(4, 9),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    lost=st.sets(st.integers(0, 8), max_size=9),
    ties=st.booleans(),
    damaged=st.dictionaries(st.tuples(st.integers(0, 8), st.integers(0, N - 1)), st.sampled_from([np.nan, 2, -1])),
)
def test_many_inputs_are_merged_as_each_alone(
    rule: str,
    seed: int,
    n_classes: int,
    threshold: float,
    lost: set[int],
    ties: bool,
    damaged: dict[tuple[int, int], float],
) -> None:
    random = np.random.default_rng(seed)
    scores = random.random((n_classes, N, 3)).astype(np.float32)
    if ties:
        scores = np.round(scores * 4) / 4
    for (worker, at), value in damaged.items():
        if worker < n_classes:
            scores[worker, at, 1] = value
    lost = {worker for worker in lost if worker < n_classes}
    plan = MergePlan(cyclic(n_classes, (0, 1, 3)), rule, threshold)
    got = ScoredInputs(plan, list(scores)).labels(lost)
    for at in range(N):
        one = [None if w in lost else scores[w, at : at + 1] for w in range(n_classes)]
        assert got[at] == merge(plan, one).class_id[0]
    with mock.patch.object(lost_workers, "MOST_NUMBERS", 5 * n_classes**2):  # in parts of five inputs
        inputs = ScoredInputs(plan, list(scores))
        assert inputs.labels(lost).tolist() == got.tolist()
        assert "copies" not in vars(inputs)


def test_sets_of_lost_workers() -> None:
    assert sorted(sets_of_workers(5, 2, 100)) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    drawn = list(sets_of_workers(30, 10, 7))
    assert len(drawn) == 7
    assert all(len(set(one)) == 10 for one in drawn)


def test_a_curve_by_hand() -> None:
    # Two workers cover both of two classes; the first is always right, the second never.
    scores = [np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.2, 0.8], [0.8, 0.2]])]
    inputs, truth = ScoredInputs(MergePlan(Assignment(((0, 1), (0, 1)), 2)), scores), np.array([0, 1])
    none, one, both = accuracy_curve(inputs, truth)
    assert (none.mean, none.sets, none.every) == (1.0, 1, True)
    assert (one.worst, one.mean, one.best, one.sets) == (0.0, 0.5, 1.0, 2)
    assert both.mean == 0.0
    drawn = accuracy_curve(inputs, truth, most=1)[1]
    assert (drawn.sets, drawn.every) == (1, False)
    assert drawn.mean in (pytest.approx(0.0), pytest.approx(1.0))
