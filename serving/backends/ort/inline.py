"""Which workers run inline, on the event loop's own thread: those whose run is shorter than a hand-off to another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

HANDOFF_S = 100e-6
"""Seconds to hand a task to a sleeping thread and back: 60 to 200 us were measured on virtual machines."""


TURN_S = 50e-6
"""Seconds that a run takes longer while another thread runs Python, because both need the GIL."""


def choose_inline(
    seconds: Mapping[int, float], threads: Sequence[Collection[int]], limit_s: float, elsewhere: Collection[int] = ()
) -> frozenset[int]:
    """Choose the workers to run inline: none, those of one thread, or all, whichever gives the first answer soonest.

    Args:
        seconds: what one input takes, by worker.
        threads: the workers of each thread. A thread runs its workers one after another; threads run side by side.
        limit_s: the longest time that a request may keep the event loop's thread, in seconds; 0 for none.
        elsewhere: workers that must not run inline, nor those that share their thread.
    """
    alone = [sum(seconds[worker] for worker in thread) for thread in threads]
    times = [sum(seconds[worker] + TURN_S for worker in thread) for thread in threads]
    free = [not set(thread) & set(elsewhere) for thread in threads]
    # When this thread has run workers itself it is awake: the other threads' results cost half a hand-off.
    best, chosen = HANDOFF_S + max(times), frozenset[int]()
    if all(free) and sum(alone) <= min(limit_s, best):
        best, chosen = sum(alone), frozenset(seconds)
    for at, thread in enumerate(threads):
        others = [HANDOFF_S / 2 + time for other, time in enumerate(times) if other != at]
        if free[at] and alone[at] <= limit_s and max([times[at], *others]) < best:
            best, chosen = max([times[at], *others]), frozenset(thread)
    return chosen
