"""A model's reply to a request, and the counters of what it has done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import UncoveredError
from sensai_serve.merge import Answer
from sensai_serve.merge.rules import LabelVerdict, Verdict
from serving.backends import Cause
from serving.engine.workers.fanout import FanOutResult


@dataclass(slots=True)
class Reply:
    """The answer to one request, and how it was made."""

    answer: Answer
    result: FanOutResult
    queued_s: float
    """Seconds in the queue before the hand-over to the workers."""

    @property
    def worker_seconds(self) -> Mapping[int, float]:
        """Seconds inside the subnet of each worker that arrived in time."""
        return {worker: arrival.run_s for worker, arrival in self.result.arrivals.items()}

    @property
    def erasures(self) -> Mapping[int, Cause]:
        """Why each worker that did not arrive was not waited for."""
        return self.result.erasures

    @property
    def queue_s(self) -> float:
        """Seconds from admission until the last worker that arrived began its run."""
        return self.queued_s + self.result.queue_s

    @property
    def elapsed_s(self) -> float:
        """Seconds from hand-over to the workers until the answer was decided."""
        return self.result.elapsed_s


@dataclass
class Counters:
    """What a model has done since it started, for the metrics page."""

    loads: int = 0
    """How often it was loaded."""
    evictions: int = 0
    """How often it was closed to make room for another model."""
    cold: int = 0
    """Requests that came while it was not in memory."""
    succeeded: int = 0
    abstained: int = 0
    refused: int = 0
    uncovered: int = 0
    decided_early: int = 0
    inexact: int = 0
    runs_saved: int = 0
    incomplete: int = 0
    degraded: int = 0
    erasures: Counter[str] = field(default_factory=Counter)
    """The number of workers that were not waited for, by cause."""
    worker_seconds: list[float] = field(default_factory=list)
    """Seconds inside each worker's subnet, summed over the copies that came in time."""
    worker_runs: list[int] = field(default_factory=list)
    """The number of runs of each worker that came in time."""

    def record(self, results: Iterable[FanOutResult]) -> None:
        """Count what answered requests show."""
        for result in results:
            self.decided_early += result.answer.decided_early
            self.inexact += not result.answer.exact
            self.incomplete += not result.answer.complete
            self.runs_saved += result.unasked
            if result.erasures:
                self.erasures.update(cause.value for cause in result.erasures.values())
            for worker, arrival in result.arrivals.items():
                self.worker_seconds[worker] += arrival.run_s
                self.worker_runs[worker] += 1


def uncovered(result: FanOutResult, names: Sequence[str]) -> UncoveredError:
    """Make the error that says which classes have no copy left, and why.

    Args:
        result: the fan-out that left classes uncovered.
        names: the labels of all classes.
    """
    labels = ", ".join(names[c] for c in result.uncovered[:5])
    more = "" if len(result.uncovered) <= 5 else f" and {len(result.uncovered) - 5} more"
    counted = Counter(cause.value for cause in result.erasures.values())
    causes = ", ".join(f"{n} worker{'s' * (n > 1)} {cause}" for cause, n in counted.most_common())
    return UncoveredError(f"no copy of {labels}{more} is left ({causes})")


def by_reference(answer: Answer, scores: npt.NDArray[np.float32]) -> Answer:
    """Replace an answer's scores by the reference network's FP32 [N, C], and mark the answer degraded.

    Of several labels at once those carry whose score reaches their threshold.
    """
    rows: list[Verdict] = []
    for row, given in zip(answer.rows, scores, strict=True):
        if isinstance(row, LabelVerdict):
            rows.append(_labels_by_reference(row, given.tolist()))
            continue
        values = sorted(given.tolist(), reverse=True)
        margin = values[0] - values[1] if len(values) > 1 else values[0]
        rows.append(Verdict(given.tolist(), row.votes, row.copies, margin, int(given.argmax()), False))
    return answer.with_rows(rows, complete=False, degraded=True)


def _labels_by_reference(row: LabelVerdict, scores: list[float]) -> LabelVerdict:
    pairs = list(zip(scores, row.thresholds, strict=True))
    labels = [score >= threshold for score, threshold in pairs]
    margin = min(abs(score - threshold) for score, threshold in pairs)
    best = max(range(len(scores)), key=scores.__getitem__)
    return replace(row, scores=scores, labels=labels, margin=margin, class_id=best, elected=False)
