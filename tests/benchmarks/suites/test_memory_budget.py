"""`sensai bench memory-budget`: skewed requests to more models than fit."""

from __future__ import annotations

from pathlib import Path

from benchmarks.subjects.noop import noop_bundle
from benchmarks.suites.memory_budget import SHAPE, measure, report
from sensai_serve.report import Table


def test_requests_are_told_apart_by_whether_their_model_was_in_memory(tmp_path: Path) -> None:
    for number in range(3):
        noop_bundle(tmp_path / f"noop-{number}", n_workers=3, shape=SHAPE, name=f"noop-{number}")
    found = measure(tmp_path, fit=1, requests=20)
    budgeted, whole = found["servers"].values()
    assert (budgeted["failed"], whole["failed"]) == (0, 0)
    assert 0 < sum(budgeted["warm"]) < 20
    assert all(whole["warm"])
    assert 0 < budgeted["most_held_bytes"] <= found["settings"]["budget_bytes"]
    (table,) = report(found).parts
    assert isinstance(table, Table)
    assert [row[1] for row in table.rows] == ["0", "0"]
