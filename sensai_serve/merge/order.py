"""The order in which workers are asked where not all are asked at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sensai_serve.assignment import Assignment


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
