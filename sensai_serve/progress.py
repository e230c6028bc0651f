"""The callback by which long work reports progress."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is in all, in any unit."""


def silent(stage: str, done: int, total: int) -> None:
    """Show no progress."""
