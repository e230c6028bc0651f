"""How each worker is doing: how long it takes, whether requests wait for it, and whether its scores are right.

    starting -> live <-> ejected (a straggler, or its runs fail: probed, and live again when fast and sound)
                live ->  quarantined (it disagreed with the others, and its scores were not its subnet's)
                any  ->  dead (its thread or process is gone) -> starting

The last live worker of a class is never ejected for being slow, and never quarantined.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median_low

from sensai_serve.assignment import Assignment
from sensai_serve.merge import Answer
from serving.backends import Scores

SMOOTHING = 0.1
"""Weight of the newest sample in a latency estimate."""
SLOW_FACTOR = 3.0
"""A worker is slow in a request when it takes more than this many times what the median worker takes."""
SLOW_SAMPLES = 8
"""A worker is ejected when it was slow in this many requests in a row."""
FLOOR_S = 0.002
"""Seconds that every limit on a worker's time allows for the noise of the scheduler."""
FAILED_RUNS = 8
"""A worker is ejected, whatever depends on it, when this many runs in a row gave no usable scores."""
RECOVERED_PROBES = 3
"""An ejected worker is live again after this many fast probes in a row."""
BASE_RATE = 0.05
"""The disagreement rate that is assumed of a worker at first."""
BASE_WEIGHT = 50
"""The number of copies that the assumed rate counts for."""
FORGETTING = 0.999
"""Factor on a worker's counts of copies and disagreements at each request: old ones count less."""
EVIDENCE = math.log(1e6)
"""Log likelihood ratio, wrong against sound, that makes a worker suspect; doubled each time it is found sound."""
MAX_DOUBLINGS = 3


class State(StrEnum):
    """The state of a worker; see the module."""

    STARTING = "starting"
    LIVE = "live"
    EJECTED = "ejected"
    QUARANTINED = "quarantined"
    DEAD = "dead"


@dataclass
class WorkerHealth:
    """What is known of one worker."""

    state: State = State.STARTING
    latency_s: float | None = None
    """Estimate of the seconds from hand-over to scores; None before the first scores."""
    restarts: int = -1
    """How often it came up again; -1 before it came up at all."""
    slow: int = 0
    """Requests in a row in which it was slow."""
    fast_probes: int = 0
    """Fast, sound probes in a row."""
    copies: float = BASE_WEIGHT
    """Copies that were compared with others, weighted by `FORGETTING`."""
    disagreed: float = BASE_RATE * BASE_WEIGHT
    """How many of `copies` voted against the majority."""
    evidence: float = 0.0
    """Log likelihood ratio that it is wrong, never below 0 (a CUSUM test)."""
    cleared: int = 0
    """How often it was suspect and its scores were found to be its subnet's."""
    ejections: int = 0
    """How often it was ejected."""
    disagreements: int = 0
    """How many of its copies voted against the majority of their class."""


class Health:
    """The health of one model's workers. All calls on the event loop's thread."""

    def __init__(self, assignment: Assignment, *, eject: bool, costs: Sequence[float] = ()) -> None:
        """Every worker is starting.

        Args:
            assignment: who covers what.
            eject: whether stragglers are ejected; False where every copy is waited for.
            costs: of a run of each worker, in any unit; all alike where not given. A worker may take as many times what
                the cheapest ones take as its runs cost.
        """
        self._share = [cost / min(costs) for cost in costs] or [1.0] * assignment.n_workers
        self.workers = [WorkerHealth() for _ in range(assignment.n_workers)]
        self.typical_s: float | None = None
        """Seconds that the slowest healthy worker takes; None before any latency is known."""
        self._unit_s = math.inf  # the most that a worker of the cheapest runs may take, but for `FLOOR_S`
        self._failed: dict[int, int] = {}  # runs in a row without usable scores
        self._assignment = assignment
        self._eject = eject

    def admitted(self) -> list[int]:
        """Return the workers that requests go to: those that are live."""
        return [w for w, worker in enumerate(self.workers) if worker.state is State.LIVE]

    def ejected(self) -> list[int]:
        """Return the workers to be probed: those that are ejected."""
        return [w for w, worker in enumerate(self.workers) if worker.state is State.EJECTED]

    @property
    def covered(self) -> bool:
        """Whether every class has a live worker."""
        live = set(self.admitted())
        return all(not live.isdisjoint(workers) for workers in self._assignment.workers_of)

    def came_up(self, worker: int) -> None:
        """Make a worker live that was loaded and checked; forget what was known before its restart."""
        restarts = self.workers[worker].restarts + 1
        self.workers[worker] = WorkerHealth(state=State.LIVE, restarts=restarts)
        self._failed.pop(worker, None)

    def came_up_wrong(self, worker: int) -> None:
        """Quarantine a worker that was loaded and failed its check, whatever depends on it."""
        self.workers[worker].state = State.QUARANTINED

    def went_down(self, worker: int) -> None:
        """Mark a worker dead, whose thread or process is gone."""
        self.workers[worker].state = State.DEAD

    def record_latencies(self, samples: Sequence[tuple[int, float]]) -> None:
        """Take latencies into account, and eject stragglers.

        Args:
            samples: workers, and seconds from hand-over to scores, or until the scores were given up.
        """
        workers = self.workers
        for worker, seconds in samples:
            w = workers[worker]
            w.latency_s = seconds if w.latency_s is None else w.latency_s + SMOOTHING * (seconds - w.latency_s)
        known = [
            (w.latency_s, share)
            for w, share in zip(workers, self._share, strict=True)
            if w.state is State.LIVE and w.latency_s is not None
        ]
        if not known:
            return
        self._unit_s = SLOW_FACTOR * median_low([seconds / share for seconds, share in known])
        self.typical_s = max((s for s, share in known if s <= self._unit_s * share + FLOOR_S), default=None)
        for worker, seconds in samples if self._eject else ():
            if seconds > self._limit_s(worker):
                w = workers[worker]
                w.slow += 1
                if w.slow >= SLOW_SAMPLES and w.state is State.LIVE and self._can_spare(worker):
                    w.state, w.fast_probes = State.EJECTED, 0
                    w.ejections += 1
            elif workers[worker].slow:
                workers[worker].slow = 0

    def typical_of(self, asked: Collection[int]) -> float | None:
        """Seconds that the slowest healthy one of some workers takes; of all workers where none of them is known."""
        known = [
            (worker, self.workers[worker].latency_s) for worker in asked if self.workers[worker].state is State.LIVE
        ]
        healthy = [seconds for worker, seconds in known if seconds is not None and seconds <= self._limit_s(worker)]
        return max(healthy, default=self.typical_s)

    def record_failure(self, worker: int) -> None:
        """Count a run that gave no usable scores; after `FAILED_RUNS` in a row the worker is ejected."""
        w = self.workers[worker]
        self._failed[worker] = self._failed.get(worker, 0) + 1
        if self._failed[worker] >= FAILED_RUNS and w.state is State.LIVE:
            w.state, w.fast_probes = State.EJECTED, 0
            w.ejections += 1

    def record_scores(self, workers: Collection[int]) -> None:
        """End the count of failures of workers that gave usable scores."""
        for worker in self._failed.keys() & workers if self._failed else ():
            del self._failed[worker]

    def record_probe(self, worker: int, seconds: float | None) -> None:
        """Take a probe of an ejected worker into account; enough fast ones make it live again.

        Args:
            worker: who was probed.
            seconds: from hand-over to scores; None if the scores did not come or were wrong.
        """
        w = self.workers[worker]
        if w.state is not State.EJECTED:
            return
        limit = SLOW_FACTOR * self.typical_s + FLOOR_S if self.typical_s is not None else math.inf
        limit = max(limit, self._limit_s(worker))
        fast = seconds is not None and seconds <= limit
        w.fast_probes = w.fast_probes + 1 if fast else 0
        if w.fast_probes >= RECOVERED_PROBES:
            w.state, w.slow, w.latency_s = State.LIVE, 0, seconds
            self._failed.pop(worker, None)

    def record_votes(self, worker: int, copies: int, disagreed: int) -> bool:
        """Take into account how many of a worker's copies voted against the majority of their class.

        A cumulative sum test (Page, "Continuous Inspection Schemes", 1954) of the worker's own base rate against a rate
        far above it. Base rates differ, since some subnets are weaker than others, which is no fault. A sound worker
        may also disagree on the same input again and again, so a suspect is checked before it is quarantined.

        Args:
            worker: whose copies they are.
            copies: copies that could be compared with others.
            disagreed: how many of them voted against the majority.

        Returns:
            Whether the worker is suspect now; then hold its scores against its subnet's and call `record_judgement`.
        """
        w = self.workers[worker]
        if w.state is not State.LIVE or not copies:
            return False
        if not disagreed and not w.evidence:  # nearly always
            w.copies, w.disagreed = w.copies * FORGETTING + copies, w.disagreed * FORGETTING
            return False
        w.disagreements += disagreed
        base = min(max(w.disagreed / w.copies, 0.005), 0.3)
        wrong = min(0.9, max(3 * base, base + 0.25))
        gain = disagreed * math.log(wrong / base) + (copies - disagreed) * math.log((1 - wrong) / (1 - base))
        w.evidence = max(0.0, w.evidence + gain)
        if w.evidence < EVIDENCE / 2:  # copies that look wrong must not raise the base rate
            w.copies = w.copies * FORGETTING + copies
            w.disagreed = w.disagreed * FORGETTING + disagreed
        return disagreed > 0 and w.evidence >= EVIDENCE * 2 ** min(w.cleared, MAX_DOUBLINGS)

    def record_judgement(self, worker: int, *, sound: bool) -> None:
        """Clear a suspect if its scores were its subnet's; else quarantine it, unless a class has no other worker."""
        w = self.workers[worker]
        if sound:
            w.cleared, w.evidence = w.cleared + 1, 0.0
        elif w.state is State.LIVE and self._can_spare(worker):
            w.state = State.QUARANTINED

    def _limit_s(self, worker: int) -> float:
        """Seconds above which a worker is slow."""
        return self._unit_s * self._share[worker] + FLOOR_S

    def _can_spare(self, worker: int) -> bool:
        live = set(self.admitted()) - {worker}
        return all(not live.isdisjoint(self._assignment.workers_of[c]) for c in self._assignment.rows[worker])


def disagreements(
    assignment: Assignment, thresholds: Sequence[float], answer: Answer, scores: Sequence[tuple[int, Scores]]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Count how many of each worker's copies can be compared with the others of their class, and how many disagree.

    Args:
        assignment: who covers what.
        thresholds: of each class; a copy at or above it is a vote.
        answer: the merged answer, with or without these workers.
        scores: workers, and the scores FP32 [N, k] of each.

    Yields:
        The worker, and its copies that can be compared and those that disagree.
    """
    rows = [(row.votes, row.copies) for row in answer.rows]
    agreed = all(v in (0, n) for votes, copies in rows for v, n in zip(votes, copies, strict=True))
    arrived = set(answer.arrived)
    for worker, given in scores:
        own, row = worker in arrived, assignment.rows[worker]
        if own and agreed:  # nearly always
            yield worker, (sum(copies[c] > 1 for _, copies in rows for c in row), 0)
            continue
        compared = disagreed = 0
        for (votes, copies), mine in zip(rows, given.tolist(), strict=True):
            for c, score in zip(row, mine, strict=True):
                vote = score >= thresholds[c]
                others = copies[c] - own
                in_favour = votes[c] - (own and vote)
                if 2 * in_favour == others:
                    continue  # there are no others, or they are split
                compared += 1
                disagreed += vote != (2 * in_favour > others)
        yield worker, (compared, disagreed)
