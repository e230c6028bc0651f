"""Hand-offs to processes are measured beside those to threads, whatever the figures are."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.subjects.noop import noop_bundle
from benchmarks.suites.handoff import DECISION, FIRST, LAST, THREADS, WAYS, measure, report
from sensai_serve.report import Table


@pytest.mark.soak
def test_every_way_takes_its_turns_at_every_stage(tmp_path: Path) -> None:
    found = measure(noop_bundle(tmp_path / "noop", n_workers=10), rounds=3, per_round=5)
    figures = found["figures"]
    assert set(figures) == {f"{way}, {stage}" for way in WAYS for stage in (FIRST, LAST, DECISION)}
    assert all(each["count"] == 15 for each in figures.values())
    assert figures[f"{THREADS}, {DECISION}"]["p50_ratio"] == [1, 1, 1]
    (table,) = report(found).parts
    assert isinstance(table, Table)
    assert len(table.rows) == len(figures)
