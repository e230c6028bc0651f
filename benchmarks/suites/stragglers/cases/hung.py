"""A worker whose run never ends."""

from __future__ import annotations

from benchmarks.suites.stragglers.cases import CaseResult, Context
from benchmarks.suites.stragglers.cases import _broken as broken


def run(context: Context) -> CaseResult:
    """Let one worker hang again and again under load."""
    return broken.run(context, "hang", "hangs inside a run")
