"""kill -9 of a random worker process every second, under load."""

from __future__ import annotations

import signal

from benchmarks.suites.stragglers.cases import CaseResult, Context
from benchmarks.suites.stragglers.cases import _signals as signals


def run(context: Context) -> CaseResult:
    """Kill a random worker process every second, under load."""
    return signals.run(context, signal.SIGKILL, 1.0, 1.5, "kill -9 of a random worker")
