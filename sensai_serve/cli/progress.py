"""Progress of long work: bars with the time left on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sensai_serve.progress import OnProgress, silent

LINE_EVERY_S = 10.0


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[OnProgress]:
    """Show on stderr what is reported while the block runs."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _Lines()


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


class _Lines:
    """Writes a line when a stage ends, and every ten seconds within one."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._said = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        started = self._started.setdefault(stage, now)
        if done >= total:
            sys.stderr.write(f"{stage}: done in {now - started:.1f} s\n")
        elif now - self._said >= LINE_EVERY_S and done > 0:
            left = (now - started) * (total - done) / done
            sys.stderr.write(f"{stage}: {done} of {total}, {left:.0f} s left\n")
        else:
            return
        self._said = now
        sys.stderr.flush()
