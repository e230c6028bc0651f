"""Which workers run inline, on the event loop's own thread: those whose run is shorter than a hand-off to another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from sensai_serve.bundles import Bundle
from sensai_serve.merge import Wait, runs_in_turn
from sensai_serve.tensors import Inputs
from serving.backends import Scores

HANDOFF_S = 100e-6
"""Seconds to hand a task to a sleeping thread and back: 60 to 200 us were measured on virtual machines."""


TURN_S = 50e-6
"""Seconds that a run takes longer while another thread runs Python, because both need the GIL."""


def choose_inline(
    seconds: Mapping[int, float],
    threads: Sequence[Collection[int]],
    limit_s: float,
    elsewhere: Collection[int] = (),
    *,
    cores: int | None = None,
    share: float = 1.0,
) -> frozenset[int]:
    """Choose the workers to run inline: none, those of one thread, or all, whichever gives the first answer soonest.

    Args:
        seconds: what one input takes, by worker.
        threads: the workers of each thread. A thread runs its workers one after another; threads run side by side, as
            many at a time as there are cores.
        limit_s: the longest time that a request may keep the event loop's thread, in seconds; 0 for none.
        elsewhere: workers that must not run inline, nor those that share their thread.
        cores: cores that the server may use; None for one for each thread.
        share: of the workers of a thread that run before the answer stands (`share_run`). All workers of one thread
            that run inline beside others count in full: fused, all of them run.
    """
    cores = len(threads) if cores is None else cores
    alone = [sum(seconds[worker] for worker in thread) for thread in threads]
    times = [sum(seconds[worker] + TURN_S for worker in thread) for thread in threads]
    free = [not set(thread) & set(elsewhere) for thread in threads]
    # When this thread has run workers itself it is awake: the other threads' results cost half a hand-off.
    best, chosen = HANDOFF_S + share * _side_by_side(times, cores), frozenset[int]()
    if all(free) and sum(alone) <= limit_s and share * sum(alone) <= best:
        best, chosen = share * sum(alone), frozenset(seconds)
    for at, thread in enumerate(threads):
        others = [time for other, time in enumerate(times) if other != at]
        time = times[at] if not others else max(times[at], HANDOFF_S / 2 + share * _side_by_side(others, cores - 1))
        if free[at] and alone[at] <= limit_s and time < best:
            best, chosen = time, frozenset(thread)
    return chosen


def _side_by_side(times: Sequence[float], cores: int) -> float:
    """Seconds until the last of some threads is done, at best."""
    return max(*times, sum(times) / max(1, min(cores, len(times))))


def share_run(bundle: Bundle, run: Callable[[Inputs], Sequence[Scores]], wait: Wait) -> float:
    """Share of a bundle's workers that run, one after another, until an answer stands: its mean on the golden samples.

    Args:
        bundle: of one input tensor.
        run: every worker's scores FP32 [1, k] of one input [1, *shape].
        wait: what the answer stands by.
    """
    samples = bundle.golden().tensor
    runs = sum(runs_in_turn(bundle.merge_plan, run(sample[None]), wait) for sample in samples)
    return runs / (len(samples) * bundle.assignment.n_workers)
