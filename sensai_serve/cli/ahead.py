"""What `sensai serve` starts before it reads its options: the process in which bundles are tried out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.runtime.trial_process import TrialProcess

_NO_TRIAL = {"--help", "--show-settings", "--no-trial"}
_first: ContextVar[TrialProcess | None] = ContextVar("first", default=None)


@contextmanager
def trial_ahead(arguments: Sequence[str]) -> Iterator[None]:
    """Start the first trial's process where the block will serve bundles, and end it with the block at the latest.

    It imports what it needs while this process imports the settings and the transports.

    Args:
        arguments: those of the `sensai` command.
    """
    process = _started() if _tries_out(arguments) else None
    token = _first.set(process)
    try:
        yield
    finally:
        _first.reset(token)
        if process is not None:
            process.kill()


def _tries_out(arguments: Sequence[str]) -> bool:
    """Whether the command is most likely to need the process; settings in a file may still say otherwise."""
    serves = len(arguments) > 1 and arguments[0] == "serve"
    return serves and not _NO_TRIAL.intersection(arguments) and "SENSAI_TRIAL" not in os.environ


def _started() -> TrialProcess | None:
    from serving.runtime.trial_process import TrialProcess

    try:
        process = TrialProcess()
    except OSError:  # there is nowhere to write; should a trial be wanted, it says so
        return None
    process.begin()
    return process


def first_trial() -> TrialProcess | None:
    """The process that was started ahead; None where none was."""
    return _first.get()
