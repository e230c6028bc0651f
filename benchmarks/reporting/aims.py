"""What a benchmark wants to hold, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sensai_serve.report import Row


@dataclass(frozen=True)
class Aim:
    """One statement that is to hold, and what was found."""

    wanted: str
    found: str
    holds: bool | None
    """None where the finding is only reported."""


COLUMNS = ("aim", "found", "holds")
"""Headings of a table of aims."""


def rows(aims: Sequence[Aim]) -> list[Row]:
    """The rows of a table of aims."""
    return [(aim.wanted, aim.found, "" if aim.holds is None else "yes" if aim.holds else "NO") for aim in aims]
