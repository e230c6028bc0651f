"""Which subnets run on the event loop's own thread: those for which a hand-off to another thread costs more."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

HANDOFF_S = 100e-6
"""To another thread and back, when its core sleeps: 60 to 200 us were measured on virtual machines."""


TURN_S = 50e-6
"""What a run costs more while another thread runs Python: both take turns at the interpreter's lock."""


def stay_here(
    seconds: Mapping[int, float], lanes: Sequence[Collection[int]], limit_s: float, elsewhere: Collection[int] = ()
) -> frozenset[int]:
    """Choose what gives the first answer soonest: no worker here, those of one lane, or all.

    Args:
        seconds: that each worker takes.
        lanes: workers that run one after another; lanes run at the same time.
        limit_s: the longest time that a request may keep the event loop's thread, in seconds; 0: none stays here.
        elsewhere: workers that must not run here, and keep their lane from it.
    """
    alone = [sum(seconds[worker] for worker in lane) for lane in lanes]
    times = [sum(seconds[worker] + TURN_S for worker in lane) for lane in lanes]
    free = [not set(lane) & set(elsewhere) for lane in lanes]
    # Whoever has run one lane itself is awake when the others are done: they need only to get there.
    best, chosen = HANDOFF_S + max(times), frozenset[int]()
    if all(free) and sum(alone) <= min(limit_s, best):
        best, chosen = sum(alone), frozenset(seconds)
    for at, lane in enumerate(lanes):
        others = [HANDOFF_S / 2 + time for other, time in enumerate(times) if other != at]
        if free[at] and alone[at] <= limit_s and max([times[at], *others]) < best:
            best, chosen = max([times[at], *others]), frozenset(lane)
    return chosen
