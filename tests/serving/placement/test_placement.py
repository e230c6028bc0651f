"""Which worker goes where, and what that promises."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import binary, build, cyclic
from sensai_serve.guarantees import survives
from serving.placement.place import place


def test_copies_of_a_class_go_to_different_devices_where_they_can() -> None:
    placement = place(cyclic(10, (0, 1, 3)), 5)
    assert placement.crowded == ()
    assert placement.losses_covered == 2


def test_three_copies_on_two_devices_are_said_to_be_impossible() -> None:
    placement = place(cyclic(10, (0, 1, 3)), 2)
    assert placement.unavoidable
    assert placement.crowded == tuple(range(10))
    assert placement.losses_covered == 1  # and yet either device can be lost


def test_work_is_balanced() -> None:
    assert sorted(len(place(binary(10), 3).workers_on(d)) for d in range(3)) == [3, 3, 4]
    costly = place(binary(4), 2, costs=[3, 1, 1, 1])
    assert costly.workers_on(costly.device_of[0]) == (0,)


@given(st.integers(2, 14), st.integers(1, 6), st.data())
def test_promised_device_losses_are_survived(n_workers: int, n_devices: int, data: st.DataObject) -> None:
    redundancy = data.draw(st.integers(1, min(4, n_workers)))
    costs = data.draw(st.lists(st.integers(1, 9), min_size=n_workers, max_size=n_workers))
    assignment = build("cyclic", n_workers, redundancy=redundancy)
    placement = place(assignment, n_devices, costs)
    assert placement == place(assignment, n_devices, costs)
    assert set(placement.device_of) <= set(range(n_devices))
    for lost in itertools.combinations(range(n_devices), placement.losses_covered):
        assert survives(assignment, {w for w, d in enumerate(placement.device_of) if d in lost})
    for lost in placement.surviving:
        assert survives(assignment, {w for w, d in enumerate(placement.device_of) if d in lost})


@pytest.mark.parametrize(("n_workers", "redundancy"), [(4, 2), (5, 2), (5, 3), (6, 3), (7, 2), (7, 3)])
@pytest.mark.parametrize("n_devices", [2, 3])
def test_as_many_device_losses_are_survived_as_any_placement_survives(
    n_workers: int, redundancy: int, n_devices: int
) -> None:
    assignment = build("cyclic", n_workers, redundancy=redundancy)
    best = max(
        min(len({devices[w] for w in workers}) for workers in assignment.workers_of) - 1
        for devices in itertools.product(range(n_devices), repeat=n_workers)
    )
    assert place(assignment, n_devices).losses_covered == best


@pytest.mark.parametrize("n_workers", [64, 100])
def test_large_assignments_are_placed_without_crowding(n_workers: int) -> None:
    placement = place(build("cyclic", n_workers, redundancy=3), 8)
    assert placement.losses_covered == 2
