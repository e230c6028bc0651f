"""Estimates as cells of tables."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.harness.stats import IntervalEstimate
from sensai_serve.report import Cell


def microseconds(estimate: IntervalEstimate | None) -> Cell:
    """A cell in microseconds, from an estimate in seconds; empty where there is none."""
    return _scaled(estimate, 1e6)


def milliseconds(estimate: IntervalEstimate | None) -> Cell:
    """A cell in milliseconds, from an estimate in seconds; empty where there is none."""
    return _scaled(estimate, 1e3)


def from_microseconds(quantile: Mapping[str, float | None]) -> IntervalEstimate:
    """An estimate in seconds, from a quantile in `benchmarks.harness.stats.Summary.to_json`."""
    low, high = (None if (bound := quantile[side]) is None else bound / 1e6 for side in ("low", "high"))
    return IntervalEstimate((quantile["value"] or 0.0) / 1e6, low, high)


def times(estimate: IntervalEstimate | None) -> Cell:
    """A cell for a ratio, say ``2.13x``; empty where there is none."""
    if estimate is None:
        return Cell("")
    low, high = estimate.low, estimate.high
    return Cell(f"{estimate.value:.2f}x", "" if low is None or high is None else f"{low:.2f}-{high:.2f}")


def number(value: float) -> str:
    """A number with three significant digits, or with all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plural(count: int, noun: str) -> str:
    """A count and its noun, say ``1 client`` or ``2 clients``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _scaled(estimate: IntervalEstimate | None, scale: float) -> Cell:
    if estimate is None:
        return Cell("")
    low, high = (None if bound is None else number(bound * scale) for bound in (estimate.low, estimate.high))
    if low and high:
        return Cell(number(estimate.value * scale), f"{low}-{high}")
    one_sided = f"from {low}" if low else f"up to {high}" if high else ""  # too few samples for the other side
    return Cell(number(estimate.value * scale), one_sided)
