"""What the console costs is measured beside a server without it, whatever the figures are."""

from __future__ import annotations

from pathlib import Path

from benchmarks.subjects.noop import noop_bundle
from benchmarks.suites.console import measure, report


def test_no_page_and_several_take_turns_with_a_server_without_the_console(tmp_path: Path) -> None:
    found = measure(noop_bundle(tmp_path / "noop", n_workers=3), pages=2, rounds=3, per_round=5)
    figures = found["figures"]
    assert list(figures) == ["console off", "no page open", "2 pages open"]
    assert all(each["count"] == 15 for each in figures.values())
    assert figures["console off"]["p50_ratio"] == [1, 1, 1]
    assert [row[0] for row in report(found).parts[0].rows] == list(figures)
