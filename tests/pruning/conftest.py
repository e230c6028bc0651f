"""Every test of the offline side begins as a new process does: nothing was said yet."""

from __future__ import annotations

import pytest

from pruning import notices


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_said", set())
