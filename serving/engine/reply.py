"""What a model answers, and what it counts while it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import UncoveredError
from sensai_serve.merge import Answer
from sensai_serve.merge.rules import Verdict
from serving.backends import Cause
from serving.engine.fanout import FanOutResult


@dataclass(slots=True)
class Reply:
    """The answer to one request, and how it came about."""

    answer: Answer
    result: FanOutResult
    line_s: float
    """Seconds in line before the hand-over to the workers."""

    @property
    def worker_seconds(self) -> Mapping[int, float]:
        """For each worker that arrived in time, how long its subnet took."""
        return {worker: arrival.run_s for worker, arrival in self.result.arrivals.items()}

    @property
    def erasures(self) -> Mapping[int, Cause]:
        """For each worker that was not waited for, why."""
        return self.result.erasures

    @property
    def queue_s(self) -> float:
        """Seconds from admission until the last of the arrived workers began: in line, and behind its earlier task."""
        return self.line_s + self.result.queue_s

    @property
    def elapsed_s(self) -> float:
        """Seconds from hand-over to the workers until the answer was decided."""
        return self.result.elapsed_s


@dataclass
class Counters:
    """What a model has done since it started. Plain numbers; the metrics page reads them."""

    succeeded: int = 0
    abstained: int = 0
    refused: int = 0
    uncovered: int = 0
    decided_early: int = 0
    incomplete: int = 0
    degraded: int = 0
    erasures: Counter[str] = field(default_factory=Counter)
    """Workers that were not waited for, by cause."""
    worker_seconds: list[float] = field(default_factory=list)
    """Time inside each worker's subnet, of the copies that came in time."""
    worker_runs: list[int] = field(default_factory=list)
    """Copies of each worker that came in time."""


def uncovered(result: FanOutResult, names: Sequence[str]) -> UncoveredError:
    """That classes, of these names, have no copy left, and why."""
    labels = ", ".join(names[c] for c in result.uncovered[:5])
    more = "" if len(result.uncovered) <= 5 else f" and {len(result.uncovered) - 5} more"
    counted = Counter(cause.value for cause in result.erasures.values())
    causes = ", ".join(f"{n} worker{'s' * (n > 1)} {cause}" for cause, n in counted.most_common())
    return UncoveredError(f"no copy of {labels}{more} is left ({causes})")


def by_reference(answer: Answer, scores: npt.NDArray[np.float32]) -> Answer:
    """The same answer with the reference's scores [N, C] in place of the workers'."""
    rows = []
    for row, given in zip(answer.rows, scores, strict=True):
        values = sorted(given.tolist(), reverse=True)
        margin = values[0] - values[1] if len(values) > 1 else values[0]
        rows.append(Verdict(given.tolist(), row.votes, row.copies, margin, int(given.argmax()), False))
    return answer.with_rows(rows, complete=False, degraded=True)
