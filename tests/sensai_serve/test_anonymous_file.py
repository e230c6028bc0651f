"""Networks are opened from files that have no name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sensai_serve.anonymous_file import openable


def test_what_is_opened_has_the_bytes_and_is_gone_afterwards() -> None:
    with openable(b"network") as opened:
        assert Path(opened).read_bytes() == b"network"  # type: ignore[arg-type]
    assert not Path(opened).exists()  # type: ignore[arg-type]


def test_where_there_are_no_such_files_the_bytes_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with openable(b"network") as opened:
        assert opened == b"network"
