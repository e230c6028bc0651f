"""What a given file gives, and how its outputs become scores in [0, 1] of classes: by numpy, and by ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sensai_serve.preprocess import Floats

Activation = Literal["softmax", "sigmoid", "none"]
"""What makes scores of a file's numbers. softmax: logits of classes of which one is right. sigmoid: logits of classes
that are right or not each by itself. none: they are scores already."""
LEAST = 1e-6
"""Scores are taken to be at least this, and at most one minus it, where their logarithm is needed."""
_BOUNDS = float(np.float32(LEAST)), float(np.float32(1 - LEAST))
"""The same as FP32 has it, in which the graph computes: what is left to 1 is 1.3% more than `LEAST`."""


@dataclass(frozen=True)
class FileOutputs:
    """The way from a file's outputs to a worker's scores."""

    outputs: tuple[str, ...]
    """Outputs of the file, taken side by side."""
    width: int
    """How many numbers they give for one input."""
    activation: Activation
    columns: tuple[int, ...]
    """Which of the numbers are classes, in the order of the worker's classes."""
    both: bool = False
    """The one number is of the second of two classes, and the first has what it lacks to 1."""
    sums_to_one: bool = True
    """Whether all scores of an input add up to 1."""
    temperature: float = 1.0
    """Log odds are divided by it."""

    def described(self) -> str:
        """What the file gives and what is made of it, in words."""
        kind = {"softmax": "logits, softmax added", "sigmoid": "logits, sigmoid added", "none": "scores"}
        return f"{kind[self.activation]} ({', '.join(self.outputs)})"

    def scores(self, numbers: Floats) -> Floats:
        """Scores FP32 [N, k] of the file's numbers [N, width]."""
        values = numbers.astype(np.float64) / (self.temperature if self._of_logits else 1)
        scores = _softmax(values) if self.activation == "softmax" else values
        if self.activation == "sigmoid":
            scores = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
        if self.both:
            scores = np.concatenate([1 - scores, scores], axis=1)
        if not self._of_logits:
            scores = tempered(np.clip(scores, 0, 1), self.temperature, sums_to_one=self.sums_to_one)
        return np.ascontiguousarray(scores[:, list(self.columns)], np.float32)

    def nodes(self, numbers: str, wanted: str, prefix: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """ONNX nodes that make `scores` of a file's numbers FP32 [N, width], and the constants of these nodes.

        Args:
            numbers: name of the value that is given.
            wanted: name of the value that is made.
            prefix: of the names in between.
        """
        chain = _Chain(numbers, prefix)
        if self.activation == "softmax":
            chain.then("Softmax", axis=1)
        elif self.activation == "sigmoid":
            if self._of_logits and self.temperature != 1:
                chain.then("Mul", chain.constant(np.float32(1 / self.temperature)))
            chain.then("Sigmoid")
        if self.both:
            one = chain.constant(np.float32(1))
            other = chain.aside("Sub", [one, chain.value])
            chain.value = chain.aside("Concat", [other, chain.value], axis=1)
        if self.activation == "none":  # rounding may have put them out of bounds
            chain.then("Max", chain.constant(np.float32(0)))
            chain.then("Min", chain.constant(np.float32(1)))
        if self.temperature != 1 and not self._of_logits:
            self._temper(chain)
        if self.columns != tuple(range(2 if self.both else self.width)):
            chain.then("Gather", chain.constant(np.asarray(self.columns, np.int64)), axis=1)
        chain.nodes.append(helper.make_node("Identity", [chain.value], [wanted], name=wanted))
        return chain.nodes, chain.constants

    @property
    def _of_logits(self) -> bool:
        """Whether the temperature is of the file's own log odds: FP32 has too few digits for those of scores near 1."""
        return self.activation == "sigmoid" and not self.both

    def _temper(self, chain: _Chain) -> None:
        sharper = np.float32(1 / self.temperature)
        chain.then("Max", chain.constant(np.float32(LEAST)))
        if not self.sums_to_one:
            chain.then("Min", chain.constant(np.float32(1 - LEAST)))
            without = chain.aside("Sub", [chain.constant(np.float32(1)), chain.value])
            chain.value = chain.aside("Div", [chain.value, without])
        chain.then("Log")
        chain.then("Mul", chain.constant(sharper))
        if self.sums_to_one:
            chain.then("Softmax", axis=1)
        else:
            chain.then("Sigmoid")


class _Chain:
    """Nodes of which each takes what the one before gives."""

    def __init__(self, value: str, prefix: str) -> None:
        self.value = value
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix

    def then(self, operator: str, *others: str, **attributes: Any) -> None:
        """Add a node that takes the newest value, and others."""
        self.value = self.aside(operator, [self.value, *others], **attributes)

    def aside(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; the name of what it gives."""
        name = f"{self._prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: object) -> str:
        """Add a constant; its name."""
        name = f"{self._prefix}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def tempered(
    scores: np.ndarray[tuple[int, ...], np.dtype[np.floating]], temperature: float, *, sums_to_one: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    """Scores [N, k] with their log odds divided by a temperature; those that add up to 1 still do."""
    if temperature == 1:
        return scores
    if sums_to_one:
        return _softmax(np.log(np.maximum(scores, LEAST)) / temperature)
    clipped = np.clip(scores, *_BOUNDS)
    return np.asarray(1 / (1 + (clipped / (1 - clipped)) ** (-1 / temperature)))


def activation_of(numbers: Floats) -> tuple[Activation, bool]:
    """What makes scores of a file's numbers [N, width], judged by what they are for some inputs.

    Returns:
        The activation, and whether the scores add up to 1.
    """
    finite = np.isfinite(numbers).all()
    bounded = finite and numbers.min() >= -1e-6 and numbers.max() <= 1 + 1e-3
    sums = numbers.sum(axis=1, dtype=np.float64)
    if bounded and numbers.shape[1] > 1 and np.abs(sums - 1).max() <= 4e-3:  # in half precision the sum is less exact
        return "none", True
    if bounded:
        return "none", False
    return ("softmax", True) if numbers.shape[1] > 1 else ("sigmoid", False)


def _softmax(
    values: np.ndarray[tuple[int, ...], np.dtype[np.floating]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
