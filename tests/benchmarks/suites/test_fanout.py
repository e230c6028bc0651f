"""The fan-out over nodes is measured beside a unary call, whatever the figures are."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.subjects.noop import noop_bundle
from benchmarks.suites.fanout import measure


@pytest.mark.soak
def test_both_ways_of_fanning_out_take_their_turns(tmp_path: Path) -> None:
    found = measure(noop_bundle(tmp_path / "noop", n_workers=10), rounds=3, per_round=5)
    figures = found["figures"]
    assert set(figures) == {"tritonclient, one worker", "a stream per node", "a stream per worker"}
    assert all(each["count"] == 15 for each in figures.values())
    assert figures["tritonclient, one worker"]["p50_ratio"] == [1, 1, 1]
