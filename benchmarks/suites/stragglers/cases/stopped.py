"""SIGSTOP of a random worker process every few seconds, under load: alive to the system, and silent."""

from __future__ import annotations

import signal

from benchmarks.suites.stragglers.cases import CaseResult, Context
from benchmarks.suites.stragglers.cases import _signals as signals


def run(context: Context) -> CaseResult:
    """Stop a random worker process every few seconds, under load."""
    every_s = min(3.0, context.options.seconds / 2)
    return signals.run(context, signal.SIGSTOP, every_s, 4.0, "SIGSTOP of a random worker")
