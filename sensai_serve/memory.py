"""What an open subnet takes in memory, and how a process's memory is counted."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

TIMES_FILE, BESIDE_FILE = 3, 512 * 1024
"""What an open network takes where nobody has measured it: so many times its file, and so many bytes more."""


@dataclass(frozen=True)
class SubnetMemory:
    """Bytes that one subnet takes in the process that runs it."""

    weights: int
    """While it is open and idle: weights, as they are laid out for its operators, and the graph."""
    arena: int
    """More while it runs one input."""
    per_input: int
    """More for each further input of a batch."""

    def with_batch(self, inputs: int) -> int:
        """Bytes that it takes while it runs a batch of so many inputs, one at least."""
        return self.weights + self.arena + (inputs - 1) * self.per_input


def estimate(file_bytes: int, input_bytes: int) -> SubnetMemory:
    """What a network takes that nobody has measured.

    Args:
        file_bytes: size of its ONNX file.
        input_bytes: size of one input.
    """
    activations = TIMES_FILE * max(file_bytes // 8, 8 * input_bytes)
    return SubnetMemory(TIMES_FILE * file_bytes + BESIDE_FILE, activations, activations)


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
