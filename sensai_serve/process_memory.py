"""How much memory a process has for itself, and how what it has freed goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path


def anonymous_bytes(*, trimmed: bool = True) -> int | None:
    """Bytes of memory that this process has for itself, its programs and files aside; None where nobody counts them.

    Args:
        trimmed: give memory that has been freed back to the system first.
    """
    if trimmed:
        trim()
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:")), None)


def trim() -> None:
    """Return freed memory to the system: glibc keeps it, once for each thread that has used some."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries do not have it and do not need it
    if release is not None:
        release(0)
