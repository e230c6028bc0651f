"""Percentiles, their intervals, ratios and histograms, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.harness.stats import histogram, quantile, ratio, summarise


def test_intervals_hold_the_true_quantile_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    for q, n in ((0.5, 100), (0.9, 300), (0.99, 2000)):
        true = -np.log(1 - q)
        held = 0
        for _ in range(300):
            estimate = quantile(np.sort(random.exponential(size=n)), q)
            assert estimate.low is not None
            assert estimate.high is not None
            held += estimate.low <= true <= estimate.high
        assert held / 300 > 0.92


def test_no_bound_is_claimed_without_the_samples_for_it() -> None:
    estimate = quantile(np.arange(1.0, 101.0), 0.999)
    assert (estimate.value, estimate.high) == (100.0, None)
    assert estimate.low is not None
    assert quantile(np.array([3.0]), 0.5).low is None


@given(arrays(np.float64, st.integers(1, 300), elements=st.floats(1e-6, 10)))
def test_a_summary_is_in_order(seconds: np.ndarray) -> None:
    summary = summarise(seconds)
    values = [summary.least, *(estimate.value for estimate in summary.quantiles.values()), summary.most]
    assert values == sorted(values)
    assert set(values) <= set(seconds.tolist())
    assert list(summary.curve) == sorted(summary.curve)
    for estimate in summary.quantiles.values():
        assert estimate.low is None or estimate.low <= estimate.value
        assert estimate.high is None or estimate.high >= estimate.value
    assert summary.to_json()["quantiles_us"]["p50"]["value"] == pytest.approx(summary.p50 * 1e6, abs=1e-3)


def test_a_ratio_is_of_the_rounds_that_met_the_same_noise() -> None:
    random = np.random.default_rng(1)
    noise = [1 + 5 * random.random() for _ in range(20)]  # the machine's speed drifts by far more than the difference
    fast = [random.normal(1.0, 0.02, 100) * n for n in noise]
    slow = [random.normal(1.5, 0.03, 100) * n for n in noise]
    estimate = ratio(slow, fast)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 1.5 < estimate.high
    assert estimate.high - estimate.low < 0.6
    assert ratio(slow[:2], fast[:2]).low is None


@given(arrays(np.float64, st.integers(1, 200), elements=st.floats(1e-7, 100)))
def test_a_histogram_counts_everything_once(seconds: np.ndarray) -> None:
    counts, edges = histogram(seconds)
    assert counts.sum() == len(seconds)
    assert len(edges) == len(counts) + 1
    assert edges[0] <= seconds.min() * (1 + 1e-9)
