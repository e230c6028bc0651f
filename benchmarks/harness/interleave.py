"""Interleaved measurement: subjects take turns round by round, so that the machine's noise affects all of them."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from benchmarks.harness.stats import Seconds

RoundTimes = list[Seconds]
"""Latencies [n] in seconds of each round; round i of all subjects was measured one right after the other."""
_Key = TypeVar("_Key", bound=Hashable)
OnRound = Callable[[int, int], None]


class Subject(Protocol):
    """Something whose latency is measured."""

    def time(self, indices: Sequence[int]) -> Seconds:
        """Latencies [n] in seconds of these samples, one after the other.

        Raises:
            ServingError: one was not answered.
        """


@dataclass(frozen=True)
class TimedCalls:
    """A function that answers sample i, timed from outside. See `Subject`."""

    call: Callable[[int], object]

    def time(self, indices: Sequence[int]) -> Seconds:
        """See `Subject`."""
        clock, call = time.perf_counter, self.call
        seconds = np.empty(len(indices))
        for i, index in enumerate(indices):
            started = clock()
            call(index)
            seconds[i] = clock() - started
        return seconds


def in_turns(
    subjects: Mapping[_Key, Subject],
    *,
    rounds: int,
    per_round: int,
    n_samples: int,
    warm_up: int | None = None,
    seed: int = 0,
    on_round: OnRound = lambda done, total: None,
) -> dict[_Key, RoundTimes]:
    """Measure all subjects, round by round, in another order each round.

    Args:
        subjects: the subjects by name.
        rounds: number of rounds.
        per_round: samples of each subject in one round.
        n_samples: sample indices are drawn below this, the same ones for all subjects.
        warm_up: samples before the first round, a fifth of all where None.
        seed: seed of the order and the samples.
        on_round: called after each round with the rounds done and their total.

    Returns:
        The latencies of each subject, round by round.

    Raises:
        ServingError: a sample was not answered.
    """
    random = np.random.default_rng(seed)
    times: dict[_Key, RoundTimes] = {key: [] for key in subjects}
    keys = list(subjects)
    for subject in subjects.values():
        subject.time(_drawn(random, warm_up or max(rounds * per_round // 5, 1), n_samples))
    with quiet_collector():
        for done in range(rounds):
            indices = _drawn(random, per_round, n_samples)
            for at in random.permutation(len(keys)):
                times[keys[at]].append(subjects[keys[at]].time(indices))
            on_round(done + 1, rounds)
    return times


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Disable garbage collection while the block runs, so that none falls inside a timed request."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _drawn(random: np.random.Generator, count: int, n_samples: int) -> list[int]:
    indices: list[int] = random.integers(n_samples, size=count).tolist()
    return indices
