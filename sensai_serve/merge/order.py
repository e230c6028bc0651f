"""The order in which workers are asked where not all are asked at once, and who is best asked next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sensai_serve.assignment import Assignment
from sensai_serve.merge.rules import LabelVerdict, Verdict

_MANY = 64
"""Number of classes from which on numpy counts them faster."""


def ask_order(
    assignment: Assignment, best: Callable[[Sequence[int], Sequence[int]], int] = lambda asked, equal: equal[0]
) -> tuple[int, ...]:
    """Every worker once, so that each class has its first, second, ... copy after as few workers as possible.

    The next worker is the one that covers most of the classes that have the fewest copies so far, among those that
    await any.

    Args:
        assignment: who covers what.
        best: chooses among several such workers: given the workers asked so far and these, the one to ask. The first
            where not given.
    """
    copies, left = [0] * assignment.n_classes, set(range(assignment.n_workers))
    total, asked = [len(workers) for workers in assignment.workers_of], list[int]()
    while left:
        fewest = min(have for have, of in zip(copies, total, strict=True) if have < of)
        gains = {w: sum(copies[c] == fewest for c in assignment.rows[w]) for w in sorted(left)}
        most = max(gains.values())
        equal = [worker for worker, gain in gains.items() if gain == most]
        chosen = equal[0] if len(equal) == 1 else best(tuple(asked), equal)
        for c in assignment.rows[chosen]:
            copies[c] += 1
        asked.append(chosen)
        left.discard(chosen)
    return tuple(asked)


def most_decisive(assignment: Assignment, verdict: Verdict, workers: Sequence[int], position: Sequence[int]) -> int:
    """The worker whose copies come nearest to deciding an answer, given what has arrived.

    Of one label: an answer is decided when the copies to come cannot lift another class above the best one. So the
    copies of the best class come first, once somebody has voted for it, since they say how high that is; then those of
    classes without any, since each such class may still win. Of several labels: the copies of labels that are open.

    Args:
        assignment: who covers what.
        verdict: what the copies that have arrived come to.
        workers: whom to choose among, at least one.
        position: of every worker, its place in the order in which equal ones are asked.
    """
    if isinstance(verdict, LabelVerdict):
        open_, best = verdict.undecided, -1
    else:
        best = verdict.class_id if verdict.class_id >= 0 and verdict.votes[verdict.class_id] else -1
        open_ = tuple(c for c, copies in enumerate(verdict.copies) if not copies)
    rows, wanted = assignment.rows, set(open_)
    if assignment.n_classes < _MANY:
        gains = [sum(c in wanted for c in rows[worker]) for worker in workers]
    else:
        gains = assignment.matrix[np.ix_(workers, open_)].sum(axis=1).tolist()
    known = zip(workers, gains, strict=True)
    return max(known, key=lambda each: (best in rows[each[0]], each[1], -position[each[0]]))[0]
