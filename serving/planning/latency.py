"""How long workers take, as ``sensai plan --latency`` says it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import InputError

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1e-3}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|)")
_Z99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True)
class Latency:
    """The distribution of the seconds from hand-over to scores of one worker, network included.

    Where a bundle says that its workers take unequal times, it is that of the one that takes longest, and others take
    their share of it.
    """

    p50: float
    p99: float
    stragglers: float = 0.0
    """Probability that a worker takes `slow` times as long."""
    slow: float = 10.0
    """Factor on the latency of a straggler."""
    own: float = 0.0
    """Seconds that the gateway adds to every request."""

    def __post_init__(self) -> None:
        if not 0 < self.p50 <= self.p99 or not math.isfinite(self.p99):
            raise InputError(f"latency: p50 is {self.p50:g} s, p99 is {self.p99:g} s, expected 0 < p50 <= p99")
        if not 0 <= self.stragglers <= 1 or not self.slow >= 1:
            raise InputError("latency: expected stragglers, a probability, and slow, a factor of at least 1")

    @property
    def mean(self) -> float:
        """Mean seconds of a worker that is no straggler."""
        return self.p50 * math.exp(self._sigma**2 / 2)

    @property
    def _sigma(self) -> float:
        return math.log(self.p99 / self.p50) / _Z99

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Draw seconds, float64 of this shape."""
        drawn = random.lognormal(math.log(self.p50), self._sigma, shape)
        return np.where(random.random(shape) < self.stragglers, self.slow * drawn, drawn)


def parse_latency(text: str) -> Latency:
    """Parse ``p50=2ms,p99=8ms``, optionally with ``stragglers=0.01,slow=10,own=300us``; plain times are milliseconds.

    Raises:
        InputError: the text is not of this form.
    """
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        match = _DURATION.fullmatch(value)
        if name not in ("p50", "p99", "stragglers", "slow", "own") or match is None or name in given:
            raise InputError(
                f"--latency: {part!r}, expected for example p50=2ms,p99=8ms,stragglers=0.01,slow=10,own=300us"
            )
        number = float(match[1])
        if name in ("stragglers", "slow") and match[2]:
            raise InputError(f"--latency: {part!r}, expected a plain number")
        given[name] = number if name in ("stragglers", "slow") else number * _UNITS[match[2]]
    if "p50" not in given or "p99" not in given:
        raise InputError(f"--latency is {text!r}, expected p50 and p99, for example p50=2ms,p99=8ms")
    return Latency(**given)
