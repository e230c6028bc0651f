"""Which worker runs on which device: a pure function of the assignment matrix, the devices, costs and memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, inf

from sensai_serve.assignment import Assignment
from sensai_serve.guarantees import ENUMERATE, survives
from serving.placement.budgets import Budgets
from serving.placement.packing import pack

STARTS = 8
"""Placements that the local search starts from; the best result is taken."""
ROUNDS = 50
"""Passes of the local search; it stops at the first pass that improves nothing."""
SEARCHED = 32
"""Largest number of workers for several starts and for swaps; above it, one greedy start and moves only."""


@dataclass(frozen=True)
class Placement:
    """One device for each worker, and the guarantees that follow."""

    device_of: tuple[int, ...]
    """The index of each worker's device, by worker id."""
    n_devices: int
    losses_covered: int
    """The number of devices, whichever they are, that can be lost and every class still has a copy."""
    surviving: tuple[tuple[int, ...], ...]
    """Sets of up to `losses_covered` + 1 devices whose loss leaves every class a copy; not all where there are many."""
    crowded: tuple[int, ...]
    """Classes that have two or more copies on one device."""
    unavoidable: bool
    """Whether crowding is forced: some class has more copies than there are devices."""

    def workers_on(self, device: int) -> tuple[int, ...]:
        """Return the workers of one device, ascending."""
        return tuple(w for w, d in enumerate(self.device_of) if d == device)


def place(
    assignment: Assignment, n_devices: int, costs: Sequence[float] | None = None, budgets: Budgets | None = None
) -> Placement:
    """Spread workers over devices.

    Three aims, the first weighs most: the copies of each class on different devices (two classes with two copies
    together are better than one with three, which one device loss would take), many survived device losses, balanced
    work. A local search moves and swaps workers while that improves, from a few starts; one is greedy, the costliest
    worker first. The same arguments always give the same placement.

    Budgets come before these aims: what a device has too little memory for is never returned. Where no start leads to a
    placement that fits, bin packing finds one to start from, or says that there is none (`serving.placement.packing`).

    Args:
        assignment: who covers what.
        n_devices: the number of devices, at least 1.
        costs: the cost of each worker in any unit, such as MACs; None if all cost the same.
        budgets: what these workers take in memory, and what these devices have; None for no bound.

    Raises:
        DeviceError: no placement fits the budgets.
    """
    n_workers = assignment.n_workers
    weights = [max(float(c), 1e-9) for c in costs] if costs is not None and any(costs) else [1.0] * n_workers
    order = sorted(range(n_workers), key=lambda w: (-weights[w], w))
    best: _State | None = None
    for start in range(STARTS if n_devices > 1 and n_workers <= SEARCHED else 1):
        state = _State(assignment, n_devices, weights, budgets)
        for turn, worker in enumerate(order):
            greedy = min(range(n_devices), key=lambda d: (state.cost_with(worker, d), d)) if start == 0 else 0
            state.put(worker, greedy if start == 0 else (start * worker + turn // start) % n_devices)
        state.improve()
        if best is None or state.cost() < best.cost():
            best = state
        if best.cost()[:2] == (0, 0):
            break  # every class's copies are on different devices: other starts can only balance better
    assert best is not None
    if budgets is not None and best.cost()[0] > 0:
        best = _State(assignment, n_devices, weights, budgets)
        packing = pack(tuple(budgets.needs.values()), budgets.rooms)
        if packing.room_of is None:
            raise budgets.refusal(certain=packing.certain)
        for worker, device in enumerate(packing.room_of):
            best.put(worker, device)
        best.improve()
    return describe(assignment, tuple(best.device_of), n_devices)


def place_part(
    assignment: Assignment,
    workers: Sequence[int],
    n_devices: int,
    costs: Sequence[float] | None = None,
    budgets: Budgets | None = None,
) -> dict[int, int]:
    """Spread some of the workers over devices as `place` does, as if there were no others.

    Args:
        assignment: who covers what.
        workers: the ids of the workers to place, each once.
        n_devices: the number of devices, at least 1.
        costs: the cost of each worker of the assignment, in any unit; None if all cost the same.
        budgets: what the workers of the assignment take in memory, and what these devices have; None for no bound.

    Returns:
        The index of each of these workers' device, by worker id.

    Raises:
        DeviceError: no placement of these workers fits the budgets.
    """
    number = {c: i for i, c in enumerate(sorted({c for worker in workers for c in assignment.rows[worker]}))}
    rows = tuple(tuple(number[c] for c in assignment.rows[worker]) for worker in workers)
    own_costs = None if costs is None else [costs[worker] for worker in workers]
    own_budgets = None if budgets is None else budgets.only(workers)
    placement = place(Assignment(rows, len(number)), n_devices, own_costs, own_budgets)
    return dict(zip(workers, placement.device_of, strict=True))


class _State:
    """A placement that is being searched, with its cost kept up to date."""

    def __init__(
        self, assignment: Assignment, n_devices: int, weights: Sequence[float], budgets: Budgets | None
    ) -> None:
        self.rows = assignment.rows
        self.weights = weights
        self.needs = [0] * len(self.rows) if budgets is None else list(budgets.needs.values())
        rooms = [None] * n_devices if budgets is None else budgets.rooms
        self.rooms: list[float] = [inf if room is None else room for room in rooms]  # what each device has left
        self.device_of = [-1] * len(self.rows)
        self.loads = [0.0] * n_devices
        self.copies = [len(workers) for workers in assignment.workers_of]
        self.counts = [[0] * n_devices for _ in range(assignment.n_classes)]

    def put(self, worker: int, device: int) -> None:
        self._shift(worker, self.device_of[worker], -1)
        self._shift(worker, device, +1)
        self.device_of[worker] = device

    def _shift(self, worker: int, device: int, sign: int) -> None:
        if device >= 0:
            self.loads[device] += sign * self.weights[worker]
            self.rooms[device] -= sign * self.needs[worker]
            for c in self.rows[worker]:
                self.counts[c][device] += sign

    def cost(self) -> tuple[float, int, int, float]:
        beyond = -sum(room for room in self.rooms if room < 0)
        distinct = [sum(n > 0 for n in row) for row in self.counts]
        together = sum((copies - d) ** 2 for copies, d in zip(self.copies, distinct, strict=True))
        return (beyond, together, -min(distinct), round(sum(load * load for load in self.loads), 6))

    def cost_with(self, worker: int, device: int) -> tuple[float, int, int, float]:
        before = self.device_of[worker]
        self.put(worker, device)
        cost = self.cost()
        self._shift(worker, device, -1)
        self._shift(worker, before, +1)
        self.device_of[worker] = before
        return cost

    def improve(self) -> None:
        """Move and swap workers while that makes the placement better."""
        for _ in range(ROUNDS if len(self.loads) > 1 else 0):
            if not (self.try_moves() or (len(self.rows) <= SEARCHED and self.try_swaps())):
                break

    def try_moves(self) -> bool:
        improved = False
        for worker in range(len(self.rows)):
            best = min(range(len(self.loads)), key=lambda d: (self.cost_with(worker, d), d))
            if best != self.device_of[worker] and self.cost_with(worker, best) < self.cost():
                self.put(worker, best)
                improved = True
        return improved

    def try_swaps(self) -> bool:
        cost = self.cost()
        for a, b in itertools.combinations(range(len(self.rows)), 2):
            device_a, device_b = self.device_of[a], self.device_of[b]
            if device_a == device_b:
                continue
            self.put(a, device_b)
            self.put(b, device_a)
            if self.cost() < cost:
                return True
            self.put(a, device_a)
            self.put(b, device_b)
        return False


def describe(assignment: Assignment, device_of: tuple[int, ...], n_devices: int) -> Placement:
    """Compute the guarantees of a placement, whoever chose it.

    Args:
        assignment: who covers what.
        device_of: the index of each worker's device.
        n_devices: the number of devices.
    """
    devices_of = [Counter(device_of[w] for w in workers) for workers in assignment.workers_of]
    covered = min(map(len, devices_of)) - 1
    surviving: list[tuple[int, ...]] = []
    for size in range(1, min(n_devices - 1, covered + 1) + 1):
        if comb(n_devices, size) > ENUMERATE // 100:
            break
        surviving += [
            lost
            for lost in itertools.combinations(range(n_devices), size)
            if survives(assignment, {w for w, d in enumerate(device_of) if d in lost})
        ]
    return Placement(
        device_of=device_of,
        n_devices=n_devices,
        losses_covered=covered,
        surviving=tuple(surviving),
        crowded=tuple(c for c, devices in enumerate(devices_of) if max(devices.values()) > 1),
        unavoidable=any(len(workers) > n_devices for workers in assignment.workers_of),
    )
