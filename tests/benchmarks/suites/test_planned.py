"""`sensai plan` is held against a run of the real gateway; here, that both give figures of the same thing."""

from __future__ import annotations

from pathlib import Path

from benchmarks.suites.planned import compare
from sensai_serve.bundles import Bundle
from serving.planning import Latency


def test_plan_and_run_are_put_side_by_side(tiny_bundle: Path) -> None:
    found = compare(Bundle.open(tiny_bundle), Latency(0.002, 0.004), 40)
    for quantile in ("p50", "p99"):
        assert found["figures"][quantile]["planned_ms"] >= 2
        assert found["figures"][quantile]["measured_ms"] >= 2
