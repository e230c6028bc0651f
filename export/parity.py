"""Hold an ONNX file against the torch network that it was made from, on real inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from export.precisions import Tolerance
from export.precisions.fp32 import precision as fp32
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import Floats


@dataclass(frozen=True)
class Difference:
    """Between torch's scores and ONNX Runtime's."""

    worst: float
    """Of any score, over all inputs, run as one batch and one by one."""
    mean: float
    of_input: Floats
    """[N], the worst of each input."""
    of_rounding: Floats
    """[N], how far its scores move where operators are not fused: what is quantised is then computed in floating point,
    as a GPU does."""


def session(data: bytes, *, fused: bool = True) -> Any:
    """An ONNX Runtime session on one core of the CPU, its operators fused or run as they stand in the file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def check_parity(
    model: nn.Module, data: bytes, inputs: Floats, name: str, tolerance: Tolerance = fp32.tolerance
) -> Difference:
    """How far ONNX Runtime's scores are from torch's.

    Args:
        model: inputs to scores, in FP32.
        data: the ONNX file made from it, in any precision.
        inputs: [N, *shape], ready for the network. They are run as one batch and one by one.
        name: of the network, for the message.
        tolerance: what is let through.

    Raises:
        ModelError: a score, or all of them on average, differ by more.
    """
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(inputs)).numpy()
    ort = session(data)
    feed = ort.get_inputs()[0].name
    together = ort.run(None, {feed: inputs})[0]
    single = np.concatenate([ort.run(None, {feed: inputs[i : i + 1]})[0] for i in range(len(inputs))])
    off = np.maximum(np.abs(together - expected), np.abs(single - expected))
    worst, mean = float(off.max()), float(off.mean())
    for found, most, how in ((worst, tolerance.worst, ""), (mean, tolerance.mean, " on average")):
        if not found <= most:
            raise ModelError(
                f"export: {name} gives scores {found:.2g} away from torch's{how}, expected at most {most:g}"
            )
    plain = session(data, fused=False).run(None, {feed: inputs})[0]
    return Difference(worst, mean, off.max(axis=1), np.abs(plain - together).max(axis=1))
