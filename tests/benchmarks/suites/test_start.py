"""Every server of the benchmark of starts becomes ready and is ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.subjects.noop import noop_bundle
from benchmarks.suites.start import EMPTY, measure, report


@pytest.mark.soak
def test_each_server_is_started_as_often(tmp_path: Path) -> None:
    for number in range(2):
        noop_bundle(tmp_path / "models" / f"noop-{number}", n_workers=3, name=f"noop-{number}")
    alone = noop_bundle(tmp_path / "alone", n_workers=3, name="alone")
    found = measure(alone, tmp_path / "models", starts=3)
    assert list(found["times"]) == [EMPTY, "alone", "a repository of 2"]
    assert all(len(taken["ready_s"]) == 3 for taken in found["times"].values())
    shown = report(found)
    assert list(shown.results) == list(found["times"])
