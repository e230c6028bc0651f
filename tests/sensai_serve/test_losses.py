"""The vote over many inputs and many sets of lost workers is the merge of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import cyclic
from sensai_serve.losses import copies_of, loss_curve, loss_sets, majority
from sensai_serve.merge import MergePlan
from sensai_serve.merge.collector import merge


@given(
    seed=st.integers(0, 2**32 - 1),
    n_classes=st.integers(4, 9),
    lost=st.sets(st.integers(0, 8), max_size=7),
    ties=st.booleans(),
)
def test_the_vote_over_many_inputs_is_the_merge_of_each(seed: int, n_classes: int, lost: set[int], ties: bool) -> None:
    assignment = cyclic(n_classes, (0, 1, 3))
    random = np.random.default_rng(seed)
    scores = random.random((n_classes, 12, 3)).astype(np.float32)
    if ties:
        scores = np.round(scores * 4) / 4
    copies = np.full((12, n_classes, n_classes), np.nan)
    for worker, row in enumerate(assignment.rows):
        if worker not in lost:
            copies[:, worker, list(row)] = scores[worker]
    got = majority(copies, 0.5)
    for at in range(12):
        one = [None if w in lost else scores[w, at : at + 1] for w in range(n_classes)]
        assert got[at] == merge(MergePlan(assignment), one).class_id[0]


def test_sets_of_lost_workers() -> None:
    assert sorted(loss_sets(5, 2, 100)) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    drawn = list(loss_sets(30, 10, 7))
    assert len(drawn) == 7
    assert all(len(set(one)) == 10 for one in drawn)


def test_a_curve_of_losses_by_hand() -> None:
    # Two workers, two classes, both cover both; the first is always right, the second never.
    scores = [np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.2, 0.8], [0.8, 0.2]])]
    assignment = cyclic(2, (0, 1))
    given = [scores[0][:, list(assignment.rows[0])], scores[1][:, list(assignment.rows[1])]]
    none, one, both = loss_curve(copies_of(assignment, given), 0.5, np.array([0, 1]))
    assert (none.mean, none.sets, none.every) == (1.0, 1, True)
    assert (one.worst, one.mean, one.best, one.sets) == (0.0, 0.5, 1.0, 2)
    assert both.mean == 0.0
    drawn = loss_curve(copies_of(assignment, given), 0.5, np.array([0, 1]), most=1)[1]
    assert (drawn.sets, drawn.every) == (1, False)
    assert drawn.mean in (pytest.approx(0.0), pytest.approx(1.0))
