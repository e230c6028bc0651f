"""Memory as a limit: what is placed fits, and what is refused fits nowhere."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import build
from sensai_serve.bundles import Bundle
from sensai_serve.errors import DeviceError
from serving.engine.options import GatewayOptions
from serving.engine.placed import place_model
from serving.placement.budgets import Budgets
from serving.placement.ledger import Ledger
from serving.placement.packing import least_budget, pack
from serving.placement.place import describe, place, place_part
from serving.runtime.devices import Device

SIZES = st.lists(st.integers(1, 9), min_size=2, max_size=6)


def budgets(needs: list[int], has: list[int | None], taken: list[int] | None = None) -> Budgets:
    devices = tuple(Device("cpu", core, memory=memory) for core, memory in enumerate(has))
    return Budgets("bundle", devices, dict(enumerate(needs)), 1, tuple(taken or [0] * len(has)))


def fit(needs: list[int], rooms: list[int | None]) -> list[tuple[int, ...]]:
    """Every placement that fits, by trying all."""
    found = []
    for device_of in itertools.product(range(len(rooms)), repeat=len(needs)):
        used = [sum(need for need, at in zip(needs, device_of, strict=True) if at == d) for d in range(len(rooms))]
        if all(room is None or count <= room for count, room in zip(used, rooms, strict=True)):
            found.append(device_of)
    return found


@given(SIZES, st.lists(st.none() | st.integers(1, 25), min_size=1, max_size=3), st.data())
def test_what_is_placed_fits_and_what_is_refused_fits_nowhere(
    needs: list[int], has: list[int | None], data: st.DataObject
) -> None:
    taken = data.draw(st.lists(st.integers(0, 3), min_size=len(has), max_size=len(has)))
    assignment = build("cyclic", len(needs), redundancy=data.draw(st.integers(1, min(3, len(needs)))))
    given_budgets = budgets(needs, has, taken)
    fitting = fit(needs, list(given_budgets.rooms))
    try:
        placement = place(assignment, len(has), needs, given_budgets)
    except DeviceError as error:
        assert "bundle: no placement fits: " in str(error)
        assert not fitting
    else:
        assert placement.device_of in fitting
        given_budgets.check(dict(enumerate(placement.device_of)))


@given(SIZES, st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_the_least_budget_is_the_least(needs: list[int], has: list[int]) -> None:
    taken = [at % 2 for at in range(len(has))]
    rooms = [memory - other for memory, other in zip(has, taken, strict=True)]
    if pack(needs, rooms).room_of is None:
        least = least_budget(needs, has, taken)
        raised = [[max(m, b) - t for m, t in zip(has, taken, strict=True)] for b in (least, least - 1)]
        assert fit(needs, list(raised[0]))
        assert not fit(needs, list(raised[1]))


@given(st.integers(2, 12), st.integers(1, 5), st.data())
def test_budgets_that_are_large_enough_for_all_change_nothing(n: int, n_devices: int, data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    assignment = build("cyclic", n, redundancy=min(3, n))
    assert place(assignment, n_devices, costs) == place(
        assignment, n_devices, costs, budgets(costs, [sum(costs)] * n_devices)
    )


def test_among_placements_that_fit_as_many_device_losses_are_survived_as_any_survives() -> None:
    draw = random.Random(3)
    for _ in range(25):
        n = draw.randint(3, 6)
        assignment = build("cyclic", n, redundancy=min(3, n))
        needs, has = [draw.randint(1, 9) for _ in range(n)], [draw.choice([None, 9, 15, 21]) for _ in range(3)]
        fitting = fit(needs, has)
        if fitting:
            best = max(describe(assignment, device_of, 3).losses_covered for device_of in fitting)
            assert place(assignment, 3, needs, budgets(needs, has)).losses_covered == best


def test_a_refusal_says_what_is_needed_what_there_is_and_what_would_do() -> None:
    mebi = 2**20
    few = budgets([3 * mebi, 2 * mebi, 2 * mebi, 2 * mebi], [4 * mebi, 2 * mebi], [mebi, 0])
    with pytest.raises(DeviceError) as refused:
        place(build("cyclic", 4, redundancy=2), 2, None, few)
    assert str(refused.value) == (
        "bundle: no placement fits: worker 0 takes 3.0 MiB, workers 1-3 take 2.0 MiB each; "
        "cpu:0 has 4MiB, 1.0 MiB of it taken, cpu:1 has 2MiB; expected at least 5MiB for each"
    )
    with pytest.raises(DeviceError, match=r"workers 1-3 take 2\.0 MiB each; cpu:1 has 2MiB; expected at least 6MiB"):
        few.check({0: 0, 1: 1, 2: 1, 3: 1})
    part = place_part(build("cyclic", 4, redundancy=2), (3, 0), 2, None, few)
    assert part == {0: 0, 3: 1}


def test_a_search_that_is_given_up_says_so() -> None:
    draw = random.Random(2)
    needs = [draw.randint(900_000, 1_000_000) for _ in range(64)]
    has: list[int | None] = [sum(needs) // 8 + 100] * 8
    with pytest.raises(DeviceError, match="no placement was found that fits: worker"):
        place(build("binary", 64), 8, None, budgets(needs, has))


def test_a_cards_budget_is_shared_out_among_the_sessions_on_it(tiny_bundle: Path) -> None:
    card = Device("cuda", 0, memory=2**30)
    options = GatewayOptions(devices=(card, Device("cpu", 0, memory=2**30), Device("cuda", 1)), on_missing="reference")
    placed = place_model(Bundle.open(tiny_bundle), options, Ledger(3))
    assert placed.reference is not None
    shares = [placed.device(worker).memory for worker in placed.placement.workers_on(0)]
    all_shares = [share for share in (*shares, placed.reference.memory) if share is not None]
    assert len(all_shares) == len(shares) + 1
    assert 0.99 * 2**30 < sum(all_shares) <= 2**30
    for elsewhere in (1, 2):
        assert [placed.device(worker).memory for worker in placed.placement.workers_on(elsewhere)] != []
        assert all(placed.device(worker).memory is None for worker in placed.placement.workers_on(elsewhere))
