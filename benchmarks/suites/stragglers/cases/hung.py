"""A worker whose run never ends."""

from __future__ import annotations

from benchmarks.stragglers import Context, Finding
from benchmarks.stragglers import _broken as broken


def run(context: Context) -> Finding:
    """See the file."""
    return broken.run(context, "hang", "hangs inside a run")
