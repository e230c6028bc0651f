"""How alike copies are: disagreement of votes and correlation of errors, by hand and beside numpy's correlation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.report.copies import Copies, compare, pictures, table

ROWS = ((0, 1, 2), (2, 3, 0), (3,))


def test_two_workers_by_hand():
    truth = np.array([0, 0, 1, 1])
    first = np.array([[1, 0], [0, 0], [0, 1], [1, 1]], bool)  # errs on input 1 (class 0) and input 3 (class 0)
    second = np.array([[0, 1], [0, 0], [1, 0], [1, 0]], bool)  # for classes 1 and 0: errs on input 1 alone
    differ, together = compare(((0, 1), (1, 0)), [first, second], truth)
    assert np.isnan(np.diag(differ)).all()
    # classes 0 and 1 of the second: [1 0], [0 0], [0 1], [0 1]: it differs from the first in one vote of eight
    assert differ[0, 1] == differ[1, 0] == 1 / 8
    mistakes = np.array([[0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0]])
    assert together[0, 1] == pytest.approx(np.corrcoef(mistakes)[0, 1])


@given(seed=st.integers(0, 2**32 - 1), inputs=st.integers(1, 30))
def test_the_same_as_numpy_says_and_none_without_a_class_in_common(seed, inputs):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 4, inputs)
    votes = [random.random((inputs, len(row))) < 0.5 for row in ROWS]
    differ, together = compare(ROWS, votes, truth)
    assert np.isnan(differ[0, 2])
    assert np.isnan(together[0, 2])
    for a, b, common in ((0, 1, (0, 2)), (1, 2, (3,))):
        one, other = (votes[w][:, [ROWS[w].index(c) for c in common]] for w in (a, b))
        assert differ[a, b] == differ[b, a] == (one != other).mean()
        wrong = [(vote != (truth[:, None] == common)).ravel() for vote in (one, other)]
        if all(0 < each.mean() < 1 for each in wrong):
            assert together[a, b] == together[b, a] == pytest.approx(np.corrcoef(*wrong)[0, 1], abs=1e-9)
        else:
            assert np.isnan(together[a, b])


def test_copies_of_one_origin_and_of_several_are_told_apart():
    differ = np.array([[np.nan, 0.1, 0.3], [0.1, np.nan, 0.5], [0.3, 0.5, np.nan]])
    (made,) = table(Copies(differ, 1 - differ, origins=(0, 0, 1)))
    assert made.rows == [
        ("copies of different origins", "40.00%", "0.60"),
        ("copies of one origin", "10.00%", "0.90"),
    ]


def test_copies_without_an_error_have_no_correlation_and_single_copies_no_figures():
    nothing = np.full((2, 2), np.nan)
    alike = Copies(np.array([[np.nan, 0.0], [0.0, np.nan]]), nothing, (0, 0))
    assert table(alike)[0].rows == [("copies of one origin", "0.00%", "no errors")]
    assert [picture.name for picture in pictures(alike)] == ["votes-differ"]
    single = Copies(nothing, nothing, (0, 0))
    assert table(single) == []
    assert pictures(single) == []
