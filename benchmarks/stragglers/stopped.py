"""SIGSTOP of a random worker process every three seconds, under load: alive to the system, and silent."""

from __future__ import annotations

import signal

from benchmarks.stragglers import Context, Finding
from benchmarks.stragglers import _signals as signals


def run(context: Context) -> Finding:
    """See the file."""
    return signals.run(context, signal.SIGSTOP, 3.0, 4.0, "SIGSTOP of a random worker")
