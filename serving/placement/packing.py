"""Whether needs fit into rooms, each need whole into one of them: bin packing by a depth-first search.

The largest need is placed first, into the smallest room that has space for it; sets of rooms that have been found to be
too small for the needs that are left are not tried again. That is exact as long as it ends within `STEPS`, which it
does for a dozen needs and mostly for many more; a search that is given up may have missed a packing, and says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 20_000
"""Needs that are put into a room before a search is given up, a few for each need aside."""
PRECISION = 1000
"""A least budget is found to a part in so many."""


@dataclass(frozen=True)
class Packing:
    """What a search found."""

    room_of: tuple[int, ...] | None
    """The index of each need's room; None where none was found."""
    certain: bool
    """Whether everything has been tried where none was found."""


def pack(needs: Sequence[int], rooms: Sequence[int | None]) -> Packing:
    """Find a room for each need.

    Args:
        needs: sizes in any unit, 0 or more.
        rooms: what each room holds in the same unit, None for any size; one below 0 holds too much already.
    """
    if any(room is not None and room < 0 for room in rooms):
        return Packing(None, certain=True)
    if None in rooms or not needs:
        return Packing((rooms.index(None),) * len(needs) if needs else (), certain=True)
    return _search(needs, [room for room in rooms if room is not None])


def least_budget(needs: Sequence[int], budgets: Sequence[int | None], taken: Sequence[int]) -> int:
    """Find the least budget that would do for every room that has less now, to a part in `PRECISION`.

    With what is returned the needs fit for certain; with a part in `PRECISION` less, none fits or none is found.

    Args:
        needs: sizes in any unit.
        budgets: what each room may hold now, None for any size: too little.
        taken: what each holds already.
    """
    too_little, enough = min(budget for budget in budgets if budget is not None), sum(needs) + max(taken)
    while enough - too_little > max(1, enough // PRECISION):
        tried = (enough + too_little) // 2
        pairs = zip(budgets, taken, strict=True)
        rooms = [None if budget is None else max(budget, tried) - other for budget, other in pairs]
        if pack(needs, rooms).room_of is None:
            too_little = tried
        else:
            enough = tried
    return enough


def _search(needs: Sequence[int], rooms: Sequence[int]) -> Packing:
    order = sorted(range(len(needs)), key=lambda at: (-needs[at], at))
    sizes = [needs[at] for at in order]
    still = [*itertools.accumulate(reversed(sizes), initial=0)][::-1]  # the needs from each depth on, together
    left, chosen, steps = list(rooms), list[int](), 0
    too_small: set[tuple[int, ...]] = set()  # what rooms have left, sorted, and the depth

    def state() -> tuple[int, ...]:
        return (*sorted(left), len(chosen))

    def untried() -> list[int]:
        """Rooms for the next need, the smallest last; one of several that are alike."""
        if sum(room for room in left if room >= sizes[-1]) < still[len(chosen)] or state() in too_small:
            return []
        alike = {room: at for at, room in enumerate(left) if room >= sizes[len(chosen)]}
        return [alike[room] for room in sorted(alike, reverse=True)]

    to_try = [untried()]
    while to_try:
        if to_try[-1]:
            at = to_try[-1].pop()
            left[at] -= sizes[len(chosen)]
            chosen.append(at)
            if len(chosen) == len(sizes):
                return Packing(tuple(at for _, at in sorted(zip(order, chosen, strict=True))), certain=True)
            if (steps := steps + 1) > STEPS + 4 * len(sizes):
                return Packing(None, certain=False)
            to_try.append(untried())
        else:
            too_small.add(state())
            to_try.pop()
            if chosen:
                at = chosen.pop()
                left[at] += sizes[len(chosen)]
    return Packing(None, certain=True)
