"""Precisions that the networks of a bundle are exported in; inputs and scores are the same in all of them.

A new one is one new file here with an object ``precision`` that is a `Precision`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from sensai_serve import plugins
from sensai_serve.tensors import Inputs

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Tolerance:
    """The largest difference between scores, which are in [0, 1], and torch's in FP32 that an export may have."""

    worst: float
    """Largest difference of any single score."""
    mean: float
    """Largest mean difference of the scores of one network."""


@dataclass(frozen=True)
class Precision:
    """A numeric format that networks are exported in."""

    convert: Callable[[bytes, Inputs], bytes]
    """Converts an FP32 ONNX file to this precision; the second argument is `calibration` inputs."""
    tolerance: Tolerance
    calibration: int = 0
    """Number of training inputs that the conversion looks at."""


def find(name: str) -> Precision:
    """The precision of that name.

    Raises:
        PluginError: there is none.
    """
    found: Precision = plugins.find(__name__, name, "precision")
    return found


def output_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes from the last layer with weights to the outputs.

    They stay in FP32 in every precision: rounding there goes straight into the scores, and they cost next to nothing
    beside the layers before them.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    names: dict[str, None] = {}
    wanted = [output.name for output in model.graph.output]
    while wanted:
        node = producers.get(wanted.pop())
        if node is None or node.name in names:
            continue
        names[node.name] = None
        if node.op_type not in _WEIGHTED:
            wanted += node.input
    return list(names)
