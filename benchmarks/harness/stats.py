"""Percentiles of latencies with confidence intervals, and ratios of two things measured in turns.

Latencies are neither normal nor symmetric, so no interval here is built on a mean and a deviation. A quantile's
interval comes from order statistics, which assumes nothing of the distribution; a ratio's from resampling the rounds of
a run, in which both sides met the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
CONFIDENCE = 0.95
RESAMPLES, CHUNKS = 1000, 20
CURVE_POINTS = 201


@dataclass(frozen=True)
class IntervalEstimate:
    """An estimate and its 95% confidence interval."""

    value: float
    low: float | None
    """None where there are too few samples to say."""
    high: float | None


@dataclass(frozen=True)
class Summary:
    """Mean, extremes and quantiles of many latencies, in seconds."""

    count: int
    mean: float
    least: float
    most: float
    quantiles: dict[str, IntervalEstimate]
    """Estimates by name: p50, p90, p99, p99.9."""
    curve: tuple[float, ...]
    """Latency at equally spaced points of -log10(1 - quantile), 0 to 4: the plot with nines on its axis."""

    @property
    def p50(self) -> float:
        """The median, in seconds."""
        return self.quantiles["p50"].value

    @property
    def p99(self) -> float:
        """The 99th percentile, in seconds."""
        return self.quantiles["p99"].value

    def to_json(self) -> dict[str, Any]:
        """Plain data, in microseconds."""
        return {
            "count": self.count,
            "mean_us": _us(self.mean),
            "min_us": _us(self.least),
            "max_us": _us(self.most),
            "quantiles_us": {
                name: {key: _us(value) for key, value in asdict(estimate).items()}
                for name, estimate in self.quantiles.items()
            },
            "nines_curve_us": [_us(value) for value in self.curve],
        }


def summarise(seconds: npt.ArrayLike) -> Summary:
    """Summarise latencies, of any shape, at least one."""
    ordered = np.sort(np.asarray(seconds, np.float64).reshape(-1))
    nines = 1 - 10.0 ** -np.linspace(0, 4, CURVE_POINTS)
    return Summary(
        count=len(ordered),
        mean=float(ordered.mean()),
        least=float(ordered[0]),
        most=float(ordered[-1]),
        quantiles={name: quantile(ordered, q) for name, q in QUANTILES.items()},
        curve=tuple(float(ordered[_rank(len(ordered), q)]) for q in nines),
    )


def quantile(ordered: Seconds, q: float, confidence: float = CONFIDENCE) -> IntervalEstimate:
    """A quantile by the nearest rank, and its interval from order statistics.

    The number of samples below the true quantile is binomial (n, q), so two order statistics enclose it with a
    probability that can be read off that distribution (David and Nagaraja, "Order Statistics", 2003, section 7.1).

    Args:
        ordered: [n] ascending.
        q: the quantile, in (0, 1).
        confidence: the confidence level of the interval.

    Returns:
        The estimate; a side is None where no sample lies far enough out for it.
    """
    n = len(ordered)
    cumulative = np.cumsum(_binomial(n, q))
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(cumulative, tail))  # P(count < low) < tail: the true quantile lies above this one
    high = int(np.searchsorted(cumulative, 1 - tail))
    return IntervalEstimate(
        value=float(ordered[_rank(n, q)]),
        low=float(ordered[low - 1]) if low >= 1 else None,
        high=float(ordered[high]) if high < n else None,
    )


def ratio(slow: Sequence[Seconds], fast: Sequence[Seconds], q: float = 0.5, *, seed: int = 0) -> IntervalEstimate:
    """The ratio of two latencies at a quantile: `slow` over `fast`.

    Args:
        slow: one array of latencies per round, all of one length.
        fast: latencies of as many rounds; round i of both was measured one right after the other.
        q: the quantile to compare, in (0, 1).
        seed: seed of the resampling.

    Returns:
        The ratio of the quantiles over all rounds; its interval is that of the ratios over rounds drawn with
        replacement, the same ones for both sides (a paired block bootstrap), None with fewer than three rounds.
    """
    above, below = np.stack(slow), np.stack(fast)  # [rounds, n]
    value = float(np.quantile(above, q) / np.quantile(below, q))
    rounds = len(above)
    if rounds < 3:
        return IntervalEstimate(value, None, None)
    random = np.random.default_rng(seed)
    drawn = [random.integers(rounds, size=(RESAMPLES // CHUNKS, rounds)) for _ in range(CHUNKS)]
    ratios = np.concatenate([_quantiles(above, d, q) / _quantiles(below, d, q) for d in drawn])
    tail = (1 - CONFIDENCE) / 2
    return IntervalEstimate(value, float(np.quantile(ratios, tail)), float(np.quantile(ratios, 1 - tail)))


def histogram(seconds: npt.ArrayLike, *, bins_per_decade: int = 40) -> tuple[npt.NDArray[np.int64], Seconds]:
    """Counts of latencies in bins that are equally wide on a logarithmic axis.

    Returns:
        Counts [b], and the bins' edges [b + 1] in seconds.
    """
    values = np.asarray(seconds, np.float64).reshape(-1)
    first, last = (np.log10(v) * bins_per_decade for v in (values.min(), values.max()))
    edges = 10 ** (np.arange(np.floor(first), np.floor(last) + 2) / bins_per_decade)
    edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())  # powers round
    counts, _ = np.histogram(values, edges)
    return counts, edges


def _quantiles(rounds: Seconds, drawn: npt.NDArray[np.int64], q: float) -> Seconds:
    """The quantile over each row of drawn rounds."""
    return np.asarray(np.quantile(rounds[drawn].reshape(len(drawn), -1), q, axis=1))


def _rank(n: int, q: float) -> int:
    return min(max(int(np.ceil(q * n)) - 1, 0), n - 1)


def _binomial(n: int, q: float) -> Seconds:
    """P(k) for k = 0..n, through logarithms, so that no n is too large."""
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    k = np.arange(n + 1)
    logs = log_factorial[n] - log_factorial - log_factorial[::-1] + k * np.log(q) + (n - k) * np.log1p(-q)
    return np.asarray(np.exp(logs))


def _us(value: Any) -> Any:
    return round(value * 1e6, 3) if isinstance(value, float) else value
