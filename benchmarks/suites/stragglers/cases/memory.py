"""A worker whose run takes memory until its process is killed for it."""

from __future__ import annotations

from benchmarks.suites.stragglers.cases import CaseResult, Context
from benchmarks.suites.stragglers.cases import _broken as broken


def run(context: Context) -> CaseResult:
    """Let one worker run out of memory again and again under load."""
    return broken.run(context, "oom", "runs out of memory")
