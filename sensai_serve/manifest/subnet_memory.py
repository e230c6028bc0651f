"""What an open subnet takes in memory: as a manifest says it, or estimated from the size of its file."""

from __future__ import annotations

from dataclasses import dataclass

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
