"""What was guessed, left out or found odd in what a user gave: said once, by the process that the user started."""

from __future__ import annotations

import logging
import multiprocessing

_logger = logging.getLogger("pruning")
_said: set[str] = set()


def say(line: str) -> None:
    """Log `line` as a warning, unless this process said it before or another one started it."""
    if line not in _said and multiprocessing.parent_process() is None:
        _said.add(line)
        _logger.warning("%s", line)
