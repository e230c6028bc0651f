"""What the assignment matrix alone promises when workers are lost. Promises about copies, not about answers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import comb

from sensai_serve.assignment import Assignment

ENUMERATE = 200_000
"""Loss sets up to which they are counted one by one; past that they are bounded."""


@dataclass(frozen=True)
class LossCount:
    """How many of the sets of this many lost workers leave some class without any copy."""

    lost: int
    uncovering_least: int
    uncovering_most: int
    """Equal to the least where the sets were enumerated."""
    total: int

    @property
    def exact(self) -> bool:
        """Whether the count is a count and no bound."""
        return self.uncovering_least == self.uncovering_most


@dataclass(frozen=True)
class Guarantees:
    """Computed by `guarantees`."""

    redundancy: int
    """Copies of the class with the fewest."""
    losses_covered: int
    """Any this many workers may be lost and every class still has a copy."""
    losses_majority: int
    """Any this many workers may be lost and every class still has more than half of all its copies."""
    common_classes: int
    """The most classes that any two workers have in common: what two losses can take two copies of."""
    uncovering: tuple[LossCount, ...]
    """For 1, 2, ... lost workers."""


def guarantees(assignment: Assignment, *, up_to: int | None = None) -> Guarantees:
    """What losing workers can cost, from the matrix.

    Args:
        assignment: who covers what.
        up_to: the most lost workers to count loss sets for; two more than are always survived where None.
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
