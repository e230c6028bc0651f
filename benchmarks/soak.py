"""The benchmarks of ``make soak``, on bundles of digits that it makes, with one, two and three copies of a class.

Straggler cases, and honest clients beside hostile ones.

``SOAK_SECONDS`` shortens all of it for trying. Figures of a run that was shortened go to ``runs/soak``: those in
``benchmarks/results`` are of whole ones.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import demo
from sensai_serve.errors import InputError, SensaiError

SECONDS = 60.0
"""Seconds of each case that counts time, in a whole run."""
REQUESTS, LEAST_REQUESTS = 2000, 100
SWAPS, LEAST_SWAPS = 200, 2
ATTACK_SECONDS, LEAST_ATTACK_SECONDS = 600, 5
RESULTS, TRIED = Path("benchmarks/results"), Path("runs/soak")
CODES = (
    demo.VARIANTS[0],
    demo.Variant("cyclic-2", demo.BUNDLES / "digits-r2", ("--assignment", "cyclic", "--redundancy", "2")),
    demo.VARIANTS[1],
)
"""One, two and three copies of each class."""


@dataclass(frozen=True)
class Length:
    """Length of the run, and what is scaled by it."""

    seconds: float = SECONDS

    @classmethod
    def from_environment(cls) -> Length:
        """The length that ``SOAK_SECONDS`` asks for.

        Raises:
            InputError: it is no number of seconds from 1 to 60.
        """
        text = os.environ.get("SOAK_SECONDS", str(SECONDS))
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 1 <= seconds <= SECONDS:
            raise InputError(f"SOAK_SECONDS is {text!r}, expected seconds, 1 to {SECONDS:.0f}")
        return cls(seconds)

    def of(self, whole: int, least: int = 1) -> int:
        """A count scaled down from that of a whole run, at least `least`."""
        return max(least, round(whole * self.seconds / SECONDS))

    @property
    def results(self) -> Path:
        """Folder of the figures: the kept results for a whole run, ``runs/soak`` for a shorter one."""
        return RESULTS if self.seconds == SECONDS else TRIED


def straggler_arguments(length: Length) -> list[str]:
    """The ``sensai bench stragglers`` that is run."""
    *beside, bundle = [str(code.bundle) for code in CODES]
    return [
        "bench", "stragglers", bundle, "--data", "digits",
        *(part for path in beside for part in ("--beside", path)),
        "--seconds", f"{length.seconds:g}",
        "--requests", str(length.of(REQUESTS, LEAST_REQUESTS)),
        "--swaps", str(length.of(SWAPS, LEAST_SWAPS)),
        "--out", str(length.results / "stragglers-digits"),
    ]  # fmt: skip


def chaos_arguments(length: Length) -> list[str]:
    """The ``sensai bench chaos`` that is run."""
    seconds = str(length.of(ATTACK_SECONDS, LEAST_ATTACK_SECONDS))
    return [
        "bench",
        "chaos",
        str(CODES[-1].bundle),
        "--seconds",
        seconds,
        "--out",
        str(length.results / "chaos-digits"),
    ]


def main() -> int:
    """Make the bundles that are not there, and run the benchmarks; the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        length = Length.from_environment()
        for code in CODES:
            demo.make(console, code)
        demo.sensai(console, *straggler_arguments(length))
        demo.sensai(console, *chaos_arguments(length))
    except SensaiError as error:
        console.print(f"[red]soak:[/red] {error}")
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
