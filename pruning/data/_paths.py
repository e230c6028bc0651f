"""Paths that must be there."""

from __future__ import annotations

from pathlib import Path

from sensai_serve.errors import DataError


def existing(path: str | Path, what: str) -> Path:
    """`path`, if there is something.

    Raises:
        DataError: there is nothing, or no path is given.
    """
    if not str(path):
        raise DataError(f"{what}: no path is given, expected {what}:PATH")
    if not Path(path).exists():
        raise DataError(f"{what}: {str(path)!r} is not there, expected a path")
    return Path(path)
