"""How each worker is doing: how long it takes, whether it is waited for, and whether it can be believed.

    starting -> live <-> ejected (a straggler, or its runs fail: probed, taken back when it is fast and sound)
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
"""A worker is a straggler when its estimate is more than this many times the median worker's."""
SLOW_SAMPLES = 8
"""... in this many requests running."""
FLOOR_S = 0.002
"""... and by at least this many seconds: below it the scheduler's noise would decide."""
FAILED_RUNS = 8
"""A worker is ejected, whatever depends on it, when so many runs in a row gave no usable scores."""
RECOVERED_PROBES = 3
"""Fast probes in a row that bring an ejected worker back."""
BASE_RATE = 0.05
"""Disagreement rate that a worker is taken to have before anything is known of it."""
BASE_WEIGHT = 50
"""... worth so many copies."""
FORGETTING = 0.999
"""What the books of one request weigh when the next one's are written."""
EVIDENCE = math.log(1e6)
"""Log likelihood ratio, wrong against sound, that makes a worker suspect; doubled each time it is found sound."""
MAX_DOUBLINGS = 3


class State(StrEnum):
    """What a worker is."""

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
    """Estimate of the time from hand-over to scores, in seconds; None before the first."""
    restarts: int = -1
    """Times it came up after the first."""
    slow: int = 0
    """Requests in a row in which it was a straggler."""
    fast_probes: int = 0
    copies: float = BASE_WEIGHT
    disagreed: float = BASE_RATE * BASE_WEIGHT
    evidence: float = 0.0
    """Log likelihood ratio that it is wrong, never below 0 (a CUSUM test)."""
    cleared: int = 0
    """Times that it was suspect and its scores were found to be its subnet's."""
    ejections: int = 0


class Health:
    """The workers of one model. All calls from the event loop's thread."""

    def __init__(self, assignment: Assignment, *, eject: bool) -> None:
        """All workers starting.

        Args:
            assignment: who covers what.
            eject: whether stragglers are ejected; without patience every copy is waited for.
        """
        self.workers = [WorkerHealth() for _ in range(assignment.n_workers)]
        self.typical_s: float | None = None
        """How long the slowest healthy worker takes, in seconds; None before anything is known."""
        self._failed: dict[int, int] = {}  # runs in a row without usable scores
        self._assignment = assignment
        self._eject = eject

    def admitted(self) -> list[int]:
        """Workers that requests go to."""
        return [w for w, worker in enumerate(self.workers) if worker.state is State.LIVE]

    def ejected(self) -> list[int]:
        """Workers to be probed."""
        return [w for w, worker in enumerate(self.workers) if worker.state is State.EJECTED]

    @property
    def covered(self) -> bool:
        """Every class has a live worker."""
        live = set(self.admitted())
        return all(not live.isdisjoint(workers) for workers in self._assignment.workers_of)

    def came_up(self, worker: int) -> None:
        """A worker is loaded and checked; what was known of an earlier life is forgotten."""
        restarts = self.workers[worker].restarts + 1
        self.workers[worker] = WorkerHealth(state=State.LIVE, restarts=restarts)
        self._failed.pop(worker, None)

    def came_up_wrong(self, worker: int) -> None:
        """A worker is loaded and failed its check: nobody asks it, whatever depends on it."""
        self.workers[worker].state = State.QUARANTINED

    def went_down(self, worker: int) -> None:
        """A worker's thread or process is gone."""
        self.workers[worker].state = State.DEAD

    def record_latencies(self, samples: Sequence[tuple[int, float]]) -> None:
        """So many seconds after they were asked for the scores of these workers came, or had not come yet."""
        workers = self.workers
        for worker, seconds in samples:
            w = workers[worker]
            w.latency_s = seconds if w.latency_s is None else w.latency_s + SMOOTHING * (seconds - w.latency_s)
        known = [w.latency_s for w in workers if w.state is State.LIVE and w.latency_s is not None]
        if not known:
            return
        limit = SLOW_FACTOR * median_low(known) + FLOOR_S
        self.typical_s = max((s for s in known if s <= limit), default=None)
        for worker, seconds in samples if self._eject else ():
            if seconds > limit:
                w = workers[worker]
                w.slow += 1
                if w.slow >= SLOW_SAMPLES and w.state is State.LIVE and self._can_spare(worker):
                    w.state, w.fast_probes = State.EJECTED, 0
                    w.ejections += 1
            elif workers[worker].slow:
                workers[worker].slow = 0

    def record_failure(self, worker: int) -> None:
        """A run gave no usable scores."""
        w = self.workers[worker]
        self._failed[worker] = self._failed.get(worker, 0) + 1
        if self._failed[worker] >= FAILED_RUNS and w.state is State.LIVE:
            w.state, w.fast_probes = State.EJECTED, 0
            w.ejections += 1

    def record_scores(self, workers: Collection[int]) -> None:
        """These gave scores."""
        for worker in self._failed.keys() & workers if self._failed else ():
            del self._failed[worker]

    def record_probe(self, worker: int, seconds: float | None) -> None:
        """An ejected worker answered a probe after so long, or not soundly: None. Enough fast ones bring it back."""
        w = self.workers[worker]
        if w.state is not State.EJECTED:
            return
        limit = SLOW_FACTOR * self.typical_s + FLOOR_S if self.typical_s is not None else math.inf
        fast = seconds is not None and seconds <= limit
        w.fast_probes = w.fast_probes + 1 if fast else 0
        if w.fast_probes >= RECOVERED_PROBES:
            w.state, w.slow, w.latency_s = State.LIVE, 0, seconds
            self._failed.pop(worker, None)

    def record_votes(self, worker: int, copies: int, disagreed: int) -> bool:
        """Of so many copies so many voted against the majority of their class; True where that makes it suspect.

        A cumulative sum test (Page, "Continuous Inspection Schemes", 1954) of the worker's own base rate against a rate
        far above it. Base rates differ: some subnets are weaker than others, and that is no fault. Nor is it one to
        disagree on the same input again and again, so a suspect is checked before it is condemned.
        """
        w = self.workers[worker]
        if w.state is not State.LIVE or not copies:
            return False
        if not disagreed and not w.evidence:  # nearly always
            w.copies, w.disagreed = w.copies * FORGETTING + copies, w.disagreed * FORGETTING
            return False
        base = min(max(w.disagreed / w.copies, 0.005), 0.3)
        wrong = min(0.9, max(3 * base, base + 0.25))
        gain = disagreed * math.log(wrong / base) + (copies - disagreed) * math.log((1 - wrong) / (1 - base))
        w.evidence = max(0.0, w.evidence + gain)
        if w.evidence < EVIDENCE / 2:  # what looks wrong must not become the new normal
            w.copies = w.copies * FORGETTING + copies
            w.disagreed = w.disagreed * FORGETTING + disagreed
        return disagreed > 0 and w.evidence >= EVIDENCE * 2 ** min(w.cleared, MAX_DOUBLINGS)

    def record_judgement(self, worker: int, *, sound: bool) -> None:
        """A suspect's scores were, or were not, those of its subnet. The last live worker of a class stays."""
        w = self.workers[worker]
        if sound:
            w.cleared, w.evidence = w.cleared + 1, 0.0
        elif w.state is State.LIVE and self._can_spare(worker):
            w.state = State.QUARANTINED

    def _can_spare(self, worker: int) -> bool:
        live = set(self.admitted()) - {worker}
        return all(not live.isdisjoint(self._assignment.workers_of[c]) for c in self._assignment.rows[worker])


def disagreements(
    assignment: Assignment, threshold: float, answer: Answer, scores: Sequence[tuple[int, Scores]]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """How many of each worker's copies can be held against the others of their class, and how many disagree with them.

    Args:
        assignment: who covers what.
        threshold: a copy at or above it is a vote.
        answer: the merged answer, with or without these workers.
        scores: workers, and the scores FP32 [N, k] of each.
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
                vote = score >= threshold
                others = copies[c] - own
                in_favour = votes[c] - (own and vote)
                if 2 * in_favour == others:
                    continue  # nobody to compare with, or the others are split
                compared += 1
                disagreed += vote != (2 * in_favour > others)
        yield worker, (compared, disagreed)
