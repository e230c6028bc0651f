"""The assignment matrix, which says what each worker covers, and the offsets of the cyclic codes.

Binary, grouped and cyclic assignments differ only here. Everything after (pruning, retraining, export, placement,
merging) sees the rows and the matrix.

Sources: class parallelism and class grouping, Wang et al., "sensAI: ConvNets Decomposition via Class Parallelism for
Fast Inference on Live Data", MLSys 2021; cyclic coding, Wang et al., "Robust Class Parallelism", 2020.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import AssignmentError

MOST_MEMBERS = 1000
"""The most workers that each cover every class."""
SEARCH_STEPS = 300_000
"""Nodes that the search for offsets visits before it takes the best found."""


@dataclass(frozen=True)
class Assignment:
    """W rows, one per worker, each the classes that worker scores, in the order of its scores."""

    rows: tuple[tuple[int, ...], ...]
    n_classes: int
    kind: str = "custom"
    offsets: tuple[int, ...] = ()
    symbols: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.rows or self.n_classes < 1:
            raise AssignmentError("assignment: expected at least one worker and one class")
        for worker, row in enumerate(self.rows):
            if not row:
                raise AssignmentError(f"assignment: worker {worker} covers no class")
            if len(set(row)) != len(row):
                raise AssignmentError(f"assignment: worker {worker} covers a class twice: {list(row)}")
            if bad := [c for c in row if not 0 <= c < self.n_classes]:
                raise AssignmentError(
                    f"assignment: worker {worker} covers class {bad[0]}, expected 0 to {self.n_classes - 1}"
                )
        if uncovered := sorted(set(range(self.n_classes)) - set(itertools.chain(*self.rows))):
            raise AssignmentError(f"assignment: no worker covers class {uncovered[0]}")

    @property
    def n_workers(self) -> int:
        """Number of workers, W."""
        return len(self.rows)

    @cached_property
    def matrix(self) -> npt.NDArray[np.bool_]:
        """The assignment matrix, bool (W, C): row w, column c says that worker w covers class c. Read-only."""
        matrix = np.zeros((self.n_workers, self.n_classes), dtype=np.bool_)
        for worker, row in enumerate(self.rows):
            matrix[worker, list(row)] = True
        matrix.flags.writeable = False
        return matrix

    @cached_property
    def workers_of(self) -> tuple[tuple[int, ...], ...]:
        """The workers that cover each class, ascending."""
        return tuple(tuple(int(w) for w in np.flatnonzero(column)) for column in self.matrix.T)

    @property
    def redundancy(self) -> int:
        """Number of copies of the class that has the fewest, r."""
        return min(map(len, self.workers_of))


def binary(n_classes: int) -> Assignment:
    """One worker per class, no redundancy: the identity matrix (C, C)."""
    symbols = tuple((c,) for c in range(n_classes))
    return Assignment(symbols, n_classes, kind="binary", symbols=symbols)


def grouped(groups: Iterable[Sequence[int]]) -> Assignment:
    """One worker per group of classes, no redundancy.

    Raises:
        AssignmentError: the groups are not a partition of 0..C-1.
    """
    symbols = _partition(groups)
    return Assignment(symbols, sum(map(len, symbols)), kind="grouped", symbols=symbols)


def cyclic(symbols: int | Iterable[Sequence[int]], offsets: Sequence[int]) -> Assignment:
    """Worker w covers the symbols ``(w + offset) mod W``, in the order of the offsets; W is the number of symbols.

    Args:
        symbols: the number of classes, each class a symbol of its own; or groups of classes, a partition.
        offsets: r distinct numbers modulo W, say ``(0, 1, 3)``, so that every class is covered r times.

    Raises:
        AssignmentError: no partition, or offsets that coincide modulo W (r > W among them).
    """
    groups = _partition([(c,) for c in range(symbols)] if isinstance(symbols, int) else symbols)
    n_workers = len(groups)
    if len(offsets) > n_workers:
        raise AssignmentError(f"redundancy is {len(offsets)}, expected at most the number of workers, {n_workers}")
    if not offsets or len({o % n_workers for o in offsets}) != len(offsets):
        raise AssignmentError(f"offsets {list(offsets)} are not distinct modulo {n_workers} workers")
    rows = tuple(
        tuple(itertools.chain.from_iterable(groups[(w + o) % n_workers] for o in offsets)) for w in range(n_workers)
    )
    return Assignment(rows, sum(map(len, groups)), kind="cyclic", offsets=tuple(offsets), symbols=groups)


def full(n_classes: int, n_workers: int) -> Assignment:
    """Every worker covers every class: r = W, an ensemble.

    Raises:
        AssignmentError: no worker, more than `MOST_MEMBERS`, or no class.
    """
    if not 1 <= n_workers <= MOST_MEMBERS:
        raise AssignmentError(f"redundancy is {n_workers}, expected 1 to {MOST_MEMBERS} workers")
    every = tuple(range(n_classes))
    return Assignment((every,) * n_workers, n_classes, kind="full", symbols=(every,) if every else ())


def explicit(rows: Iterable[Sequence[int]], n_classes: int) -> Assignment:
    """Any assignment: the classes of each worker, in the order of its scores.

    Raises:
        AssignmentError: a class that there is not, a class twice in one row, or one that no worker covers.
    """
    return Assignment(tuple(tuple(row) for row in rows), n_classes, kind="explicit")


def build(
    kind: str,
    n_classes: int,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    offsets: Sequence[int] | None = None,
    redundancy: int | None = None,
) -> Assignment:
    """The assignment that the command line's options describe.

    Args:
        kind: ``binary``, ``grouped``, ``cyclic`` or ``full``.
        n_classes: C.
        groups: a partition of the classes; needed for ``grouped``, the symbols of ``cyclic`` where given.
        offsets: of the cyclic code; searched for `redundancy` where None.
        redundancy: r, 3 where neither it nor `offsets` is given; the number of workers of ``full``.

    Raises:
        AssignmentError: options that contradict each other or make no code.
    """
    if groups is not None and sum(map(len, groups)) != n_classes:
        raise AssignmentError(f"groups hold {sum(map(len, groups))} classes, expected {n_classes}")
    if kind == "full":
        if groups is not None or offsets:
            raise AssignmentError("full: groups and offsets belong to the grouped and cyclic assignments")
        return full(n_classes, 3 if redundancy is None else redundancy)
    if kind != "cyclic" and (offsets or redundancy not in (None, 1)):
        raise AssignmentError(f"{kind}: redundancy and offsets belong to the cyclic assignment (--assignment cyclic)")
    if kind == "binary":
        if groups is not None:
            raise AssignmentError("binary: groups belong to the grouped and cyclic assignments")
        return binary(n_classes)
    if kind == "grouped":
        if groups is None:
            raise AssignmentError("grouped: the groups are missing, expected groups of classes (--groups N)")
        return grouped(groups)
    if kind == "cyclic":
        if offsets and redundancy not in (None, len(offsets)):
            raise AssignmentError(f"redundancy is {redundancy} and there are {len(offsets)} offsets, expected as many")
        if not offsets:
            copies = 3 if redundancy is None else redundancy
            offsets = search_offsets(n_classes if groups is None else len(groups), copies).offsets
        return cyclic(n_classes if groups is None else groups, offsets)
    raise AssignmentError(f"assignment: kind is {kind!r}, expected binary, grouped, cyclic or full")


@dataclass(frozen=True)
class OffsetSearch:
    """Result of the search for good offsets."""

    offsets: tuple[int, ...]
    golomb: bool
    """Whether all differences modulo W are distinct: two lost workers cost at most one common symbol."""
    largest_share: int
    """The largest number of symbols that two workers have in common."""
    pairs_at_largest: int
    """Number of unordered pairs of workers that share that many."""
    exhaustive: bool
    """Whether the whole search space was visited, so that nothing better exists."""


def search_offsets(n_workers: int, redundancy: int) -> OffsetSearch:
    """The best r offsets modulo W: smallest largest share, then fewest pairs at it, then lexicographically first.

    A share of at most 1 is a Golomb ruler modulo W (all differences distinct). Offset 0 is always among them: adding a
    constant to all offsets renames the workers and changes nothing.

    Raises:
        AssignmentError: r is not in 1..W.
    """
    if not 1 <= redundancy <= n_workers:
        raise AssignmentError(f"redundancy is {redundancy}, expected 1 to the number of workers, {n_workers}")
    exhaustive = True
    for limit in range(1, redundancy + 1):
        steps = itertools.count()
        best: tuple[int, tuple[int, ...]] | None = None
        for offsets in _rulers(n_workers, redundancy, limit, steps):
            at_limit = _pairs_at(offsets, n_workers, limit)
            if best is None or (at_limit, offsets) < best:
                best = (at_limit, offsets)
            if limit == 1 or at_limit == 0:
                break  # with all shares at most 1, every set of r offsets has the same number of pairs at 1
        if next(steps) > SEARCH_STEPS:
            exhaustive = False
        if best is not None:
            share, pairs = largest_share(best[1], n_workers)
            return OffsetSearch(best[1], share <= 1, share, pairs, exhaustive)
    raise AssertionError("any r offsets share at most r symbols")


def largest_share(offsets: Sequence[int], n_workers: int) -> tuple[int, int]:
    """The most symbols any two workers share, and how many unordered pairs of workers share that many."""
    shares = _shares(offsets, n_workers)
    most = max(shares.values(), default=0)
    return most, _pairs_at(offsets, n_workers, most) if most else n_workers * (n_workers - 1) // 2


def _shares(offsets: Sequence[int], n_workers: int) -> Counter[int]:
    """Number of symbols that two workers share, by their distance d: ordered pairs of offsets d apart."""
    return Counter((a - b) % n_workers for a, b in itertools.permutations(offsets, 2))


def _pairs_at(offsets: Sequence[int], n_workers: int, share: int) -> int:
    # Each distance d stands for W ordered pairs (w, w + d); d and -d are the same unordered pairs.
    return sum(n_workers for count in _shares(offsets, n_workers).values() if count == share) // 2


def _rulers(n_workers: int, redundancy: int, limit: int, steps: Iterator[int]) -> Iterator[tuple[int, ...]]:
    """Ascending offsets from 0 whose every difference modulo W occurs at most `limit` times, lexicographically."""
    counts = [0] * n_workers
    chosen = [0]

    def extend(first: int) -> Iterator[tuple[int, ...]]:
        if len(chosen) == redundancy:
            yield tuple(chosen)
            return
        for offset in range(first, n_workers - (redundancy - len(chosen)) + 1):
            if next(steps) > SEARCH_STEPS:
                return
            differences = [d for c in chosen for d in (offset - c, (c - offset) % n_workers)]
            for d in differences:
                counts[d] += 1
            if all(counts[d] <= limit for d in differences):
                chosen.append(offset)
                yield from extend(offset + 1)
                chosen.pop()
            for d in differences:
                counts[d] -= 1

    return extend(1)


def _partition(groups: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    symbols = tuple(tuple(int(c) for c in group) for group in groups)
    members = sorted(itertools.chain(*symbols))
    if not members or members != list(range(len(members))) or not all(symbols):
        raise AssignmentError(
            f"groups {[list(s) for s in symbols]} are no partition, "
            "expected every class 0, 1, 2, ... in exactly one group"
        )
    return symbols
