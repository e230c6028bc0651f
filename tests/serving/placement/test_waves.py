"""Waves: every worker once, in order as far as devices allow, and no device asked twice while another has room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.cpus import usable_cores
from serving.placement.waves import make_waves, side_by_side
from serving.runtime.devices import Device, Threads


@given(
    device_of=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    room=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    sizes=st.lists(st.integers(1, 5), max_size=3),
    data=st.data(),
)
def test_every_worker_is_in_one_wave_of_the_size_that_was_asked_for(device_of, room, sizes, data) -> None:
    order = data.draw(st.permutations(range(len(device_of))))
    waves = make_waves(order, device_of, room, sizes)
    assert sorted(worker for wave in waves for worker in wave) == list(range(len(device_of)))
    default = sum(room[device] for device in set(device_of))
    expected = [*sizes, *[sizes[-1] if sizes else default] * 12]
    for wave, size in zip(waves[:-1], expected, strict=False):
        assert len(wave) == size
    assert len(waves[-1]) <= expected[len(waves) - 1]


@given(
    device_of=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    room=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    size=st.integers(1, 6),
)
def test_no_worker_waits_for_a_device_while_another_of_a_later_wave_has_room(device_of, room, size) -> None:
    waves = make_waves(range(len(device_of)), device_of, room, [size])
    for number, wave in enumerate(waves):
        later = {device_of[worker] for after in waves[number + 1 :] for worker in after}
        taken = [sum(device_of[worker] == device for worker in wave) for device in range(4)]
        rounds = max(-(-taken[device] // room[device]) for device in range(4))
        for device in later:  # it could have taken one of these in place of a second round elsewhere
            assert taken[device] >= room[device] * (rounds - 1)


def test_two_cores_share_a_wave() -> None:
    assert make_waves(range(6), [0, 0, 0, 1, 1, 1], [1, 1]) == ((0, 3), (1, 4), (2, 5))
    assert make_waves([5, 4, 3, 2, 1, 0], [0, 0, 0, 1, 1, 1], [1, 1]) == ((5, 2), (4, 1), (3, 0))
    assert make_waves(range(3), [0, 1, 2], [1, 1, 1]) == ((0, 1, 2),)
    assert make_waves([], [0, 1], [1, 1]) == ()


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [
        (Device("cpu", 0), Threads(), 1),
        (Device("cuda", 0), Threads(), 1),
        (Device("cpu"), Threads(), len(usable_cores())),
        (Device("cpu"), Threads(1000), 1),
        (Device("remote"), Threads(), 7),
    ],
)
def test_what_a_device_runs_side_by_side(device: Device, threads: Threads, expected: int) -> None:
    assert side_by_side(device, 7, threads) == expected
