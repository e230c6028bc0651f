"""Guarantees when workers are lost, computed from the assignment matrix: about copies, not about answers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import comb

from sensai_serve.assignment import Assignment

ENUMERATE = 200_000
"""Up to this many sets of lost workers are counted one by one; more are bounded."""


@dataclass(frozen=True)
class LossCount:
    """Number of the sets of `lost` workers whose loss leaves some class without a copy."""

    lost: int
    uncovering_least: int
    uncovering_most: int
    """Upper bound; equal to the lower one where the sets were enumerated."""
    total: int

    @property
    def exact(self) -> bool:
        """Whether the two bounds are the same number."""
        return self.uncovering_least == self.uncovering_most


@dataclass(frozen=True)
class Guarantees:
    """What is guaranteed when workers are lost. See `guarantees`."""

    redundancy: int
    """Number of copies of the class that has the fewest."""
    losses_covered: int
    """Number of workers, whichever they are, whose loss leaves every class a copy."""
    losses_majority: int
    """Number of workers, whichever they are, whose loss leaves every class more than half of all its copies."""
    common_classes: int
    """The largest number of classes that two workers have in common: losing both takes two copies of each."""
    uncovering: tuple[LossCount, ...]
    """Loss sets that leave a class without a copy, for 1, 2, ... lost workers."""


def guarantees(assignment: Assignment, *, up_to: int | None = None) -> Guarantees:
    """Compute what is guaranteed when workers are lost.

    Args:
        assignment: who covers what.
        up_to: the largest number of lost workers that loss sets are counted for; None: two more than are always
            survived.
    """
    copies = [len(workers) for workers in assignment.workers_of]
    covered = min(copies) - 1
    last = min(assignment.n_workers, covered + 2 if up_to is None else up_to)
    rows = [frozenset(row) for row in assignment.rows]
    return Guarantees(
        redundancy=min(copies),
        losses_covered=covered,
        losses_majority=min((n - 1) // 2 for n in copies),
        common_classes=max((len(a & b) for a, b in itertools.combinations(rows, 2)), default=0),
        uncovering=tuple(_count(assignment, lost) for lost in range(1, last + 1)),
    )


def tolerates(losses: int, total: int, what: str) -> str:
    """Say in words how many losses are tolerated: ``tolerates the loss of any 2 of 10 workers``.

    Args:
        losses: number of losses after which every class still has a copy.
        total: how many there are.
        what: what is lost, in the singular.
    """
    return f"tolerates the loss of any {losses} of {total} {what}s" if losses else f"tolerates no lost {what}"


def survives(assignment: Assignment, lost: set[int]) -> bool:
    """Whether every class keeps a copy when these workers are lost."""
    return not any(lost.issuperset(workers) for workers in assignment.workers_of)


def _count(assignment: Assignment, lost: int) -> LossCount:
    n_workers = assignment.n_workers
    total = comb(n_workers, lost)
    holders = sorted({frozenset(w) for w in assignment.workers_of if len(w) <= lost}, key=lambda h: (len(h), sorted(h)))
    if not holders:
        return LossCount(lost, 0, 0, total)
    if total <= ENUMERATE:
        count = sum(
            any(holder.issubset(losses) for holder in holders)
            for losses in map(frozenset, itertools.combinations(range(n_workers), lost))
        )
        return LossCount(lost, count, count, total)
    # Bonferroni: the sum over holders bounds from above; taking off every pair's intersection bounds from below.
    singles = [comb(n_workers - len(h), lost - len(h)) for h in holders]
    overlap = 0
    if comb(len(holders), 2) <= ENUMERATE:
        for a, b in itertools.combinations(holders, 2):
            if (both := len(a | b)) <= lost:
                overlap += comb(n_workers - both, lost - both)
        least = max(sum(singles) - overlap, *singles)
    else:
        least = max(singles)
    return LossCount(lost, least, min(sum(singles), total), total)
