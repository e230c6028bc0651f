"""What production asks for is measured beside a plain server, whatever the figures are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.subjects.noop import noop_bundle
from benchmarks.suites.production import measure, report


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_every_setting_takes_turns_with_a_plain_server(tmp_path: Path) -> None:
    found = measure(noop_bundle(tmp_path / "noop", n_workers=3), pages=2, rounds=3, per_round=5)
    figures = found["figures"]
    assert list(figures) == [
        "plain",
        "plain, a second server",
        "token",
        "TLS",
        "TLS and token",
        "1% traced",
        "console, no page open",
        "console, 2 pages open",
    ]
    assert all(each["count"] == 15 for each in figures.values())
    assert figures["plain"]["p50_ratio"] == [1, 1, 1]
    assert [row[0] for row in report(found).parts[0].rows] == list(figures)
