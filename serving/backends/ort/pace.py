"""How runs compare with what they take alone: what is too slow for where it runs, and what is fast enough again."""

from __future__ import annotations

OVERRUN = 4.0
"""A run overruns when it takes this many times what it takes alone, and `FLOOR_S` more."""
FLOOR_S = 0.002
"""Seconds that the scheduler may add to any run before it counts as an overrun."""
OVERRUNS = 2
"""Overruns with fewer than `CALM_RUNS` runs of usual length between them that make something slow. One alone may be the
scheduler's doing; so the event loop loses two such runs at most in any `CALM_RUNS`."""
CALM_RUNS = 256
"""Runs in a row of usual length after which what was slow counts as fast again."""


class Pace:
    """The pace of a worker, or of a network that runs for several. One thread at a time."""

    __slots__ = ("calm", "limit_s", "overruns")

    def __init__(self, typical_s: float) -> None:
        """Nothing has run yet.

        Args:
            typical_s: seconds that one input takes when nothing else runs.
        """
        self.limit_s = OVERRUN * typical_s + FLOOR_S
        """Seconds per input after which a run overruns."""
        self.calm = 0
        """Runs in a row within the limit, since there was an overrun or something moved."""
        self.overruns = 0
        """Overruns lately. While there are none, runs within the limit need not be recorded."""

    def record(self, *, within: bool) -> None:
        """Count a run that stayed within its limit, or did not."""
        if not within:
            self.overruns += 1
            self.calm = 0
            return
        self.calm += 1
        if self.calm >= CALM_RUNS:
            self.overruns = 0

    @property
    def slow(self) -> bool:
        """Whether there were too many overruns for a place where others wait."""
        return self.overruns >= OVERRUNS

    @property
    def fast(self) -> bool:
        """Whether runs were of usual length for long enough to be among others again."""
        return self.calm >= CALM_RUNS
