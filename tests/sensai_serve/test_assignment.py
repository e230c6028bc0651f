"""The assignment matrix, the offset search and what they promise."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensai_serve.assignment import Assignment, binary, build, cyclic, grouped, largest_share, search_offsets
from sensai_serve.errors import AssignmentError
from sensai_serve.guarantees import guarantees, survives

PUBLISHED = [
    (0, 1, 3), (1, 2, 4), (2, 3, 5), (3, 4, 6), (4, 5, 7), (5, 6, 8), (6, 7, 9), (7, 8, 0), (8, 9, 1), (9, 0, 2),
]  # fmt: skip


@pytest.mark.parametrize(("worker", "classes"), list(enumerate(PUBLISHED)))
def test_published_example_row_by_row(worker: int, classes: tuple[int, ...]) -> None:
    assert cyclic(10, (0, 1, 3)).rows[worker] == classes


def test_binary_is_the_identity() -> None:
    assert (binary(4).matrix == [[i == j for j in range(4)] for i in range(4)]).all()
    assert binary(4).redundancy == 1


def test_grouped_covers_each_class_once() -> None:
    assignment = grouped([[3, 0], [1, 2]])
    assert assignment.rows == ((3, 0), (1, 2))
    assert assignment.matrix.sum(axis=0).tolist() == [1, 1, 1, 1]


def test_cyclic_over_groups_puts_whole_groups_on_a_worker() -> None:
    assignment = cyclic([[0, 5], [1, 4], [2, 3]], (0, 1))
    assert assignment.rows == ((0, 5, 1, 4), (1, 4, 2, 3), (2, 3, 0, 5))
    assert assignment.redundancy == 2


@given(st.integers(1, 30), st.data())
def test_cyclic_covers_every_class_r_times_and_each_worker_has_r_symbols(n: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(n, 5)))
    offsets = data.draw(st.lists(st.integers(0, n - 1), min_size=r, max_size=r, unique=True))
    matrix = cyclic(n, offsets).matrix
    assert (matrix.sum(axis=0) == r).all()
    assert (matrix.sum(axis=1) == r).all()


@settings(max_examples=40)
@given(st.integers(1, 9), st.data())
def test_any_r_distinct_offsets_survive_any_r_minus_1_losses(n: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(n, 4)))
    offsets = data.draw(st.lists(st.integers(0, n - 1), min_size=r, max_size=r, unique=True))
    assignment = cyclic(n, offsets)
    promised = guarantees(assignment)
    assert promised.losses_covered == r - 1
    for lost in range(1, min(n, r + 1) + 1):
        uncovering = sum(not survives(assignment, set(s)) for s in itertools.combinations(range(n), lost))
        count = promised.uncovering[lost - 1]
        assert (count.uncovering_least, count.uncovering_most) == (uncovering, uncovering)


@pytest.mark.parametrize(
    ("redundancy", "exist"),
    [(2, range(3, 30)), (3, range(7, 30)), (4, range(13, 30)), (5, [21, *range(23, 34)])],
)
def test_golomb_rulers_are_found_where_they_exist_and_nowhere_else(redundancy: int, exist: range | list[int]) -> None:
    for n_workers in range(redundancy, 34 if redundancy == 5 else 30):
        found = search_offsets(n_workers, redundancy)
        assert found.exhaustive
        assert found.golomb == (n_workers in exist), n_workers


@pytest.mark.parametrize(
    ("n_workers", "redundancy"), [(5, 3), (6, 3), (8, 4), (9, 4), (10, 4), (10, 5), (12, 5), (6, 6)]
)
def test_without_a_ruler_the_best_offsets_are_those_that_trying_all_finds(n_workers: int, redundancy: int) -> None:
    candidates = itertools.combinations(range(n_workers), redundancy)
    best = min((*largest_share(offsets, n_workers), offsets) for offsets in candidates)
    found = search_offsets(n_workers, redundancy)
    assert (found.largest_share, found.pairs_at_largest, found.offsets) == best


@given(st.integers(2, 12), st.data())
def test_largest_share_counts_what_rows_have_in_common(n: int, data: st.DataObject) -> None:
    offsets = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=min(n, 5), unique=True))
    rows = [set(row) for row in cyclic(n, offsets).rows]
    shares = [len(a & b) for a, b in itertools.combinations(rows, 2)]
    assert largest_share(offsets, n) == (max(shares), shares.count(max(shares)))


def test_large_searches_end_and_say_that_they_gave_up() -> None:
    found = search_offsets(40, 8)
    assert not found.exhaustive
    assert len(set(found.offsets)) == 8
    assert search_offsets(1000, 5).golomb


def test_guarantees_of_the_published_example() -> None:
    promised = guarantees(cyclic(10, (0, 1, 3)))
    assert (promised.redundancy, promised.losses_covered, promised.losses_majority) == (3, 2, 1)
    assert promised.common_classes == 1
    assert [(c.lost, c.uncovering_most, c.total) for c in promised.uncovering[2:]] == [(3, 10, 120), (4, 70, 210)]


def test_large_loss_counts_are_bounded_from_both_sides() -> None:
    assignment = build("cyclic", 30, redundancy=3)
    count = guarantees(assignment, up_to=6).uncovering[5]
    assert not count.exact
    assert 0 < count.uncovering_least < count.uncovering_most < count.total
    # Each class loses all three workers in C(27, 3) of the sets; overlaps of two classes are taken off below.
    assert count.uncovering_most == 30 * 2925


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cyclic(3, (0, 1, 2, 3)), "redundancy is 4, expected at most the number of workers, 3"),
        (lambda: cyclic(4, (0, 4)), "not distinct modulo 4"),
        (lambda: cyclic([[0, 1], [1, 2]], (0,)), "no partition"),
        (lambda: grouped([[0], []]), "no partition"),
        (lambda: search_offsets(4, 5), "redundancy is 5, expected 1 to the number of workers, 4"),
        (lambda: build("cyclic", 10, redundancy=11), "redundancy is 11"),
        (lambda: build("cyclic", 10, redundancy=0), "redundancy is 0, expected 1 to the number of workers, 10"),
        (lambda: build("full", 10, redundancy=0), "redundancy is 0, expected 1 to 1000 workers"),
        (lambda: build("full", 10, redundancy=1001), "redundancy is 1001, expected 1 to 1000 workers"),
        (lambda: build("cyclic", 10, redundancy=2, offsets=(0, 1, 3)), "redundancy is 2 and there are 3 offsets"),
        (lambda: build("binary", 10, redundancy=3), "belong to the cyclic assignment"),
        (lambda: build("grouped", 10), "expected groups"),
        (lambda: build("grouped", 4, groups=[[0, 1]]), "groups hold 2 classes, expected 4"),
        (lambda: build("ternary", 10), "expected binary, grouped, cyclic or full"),
        (lambda: Assignment(((0,), (0, 0)), 1), "worker 1 covers a class twice"),
        (lambda: Assignment(((0,), (2,)), 2), "worker 1 covers class 2, expected 0 to 1"),
        (lambda: Assignment(((0,),), 2), "no worker covers class 1"),
    ],
)
def test_what_makes_no_code_is_refused(make, message: str) -> None:
    with pytest.raises(AssignmentError, match=message):
        make()
