"""Hold an ONNX file against the torch network that it was made from, on real inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sensai_serve.errors import ModelError
from sensai_serve.preprocess import Floats

TOLERANCE = 1e-4
"""Scores are in [0, 1]; a tenth of what the golden check allows."""


def session(data: bytes) -> Any:
    """An ONNX Runtime session on one core of the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def check_parity(model: nn.Module, data: bytes, inputs: Floats, name: str) -> float:
    """The largest difference between torch's scores and ONNX Runtime's.

    Args:
        model: inputs to scores.
        data: the ONNX file made from it.
        inputs: [N, *shape], ready for the network. They are run as one batch and one by one.
        name: of the network, for the message.

    Raises:
        ModelError: a score differs by more than 1e-4.
    """
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(inputs)).numpy()
    ort = session(data)
    feed = ort.get_inputs()[0].name
    together = ort.run(None, {feed: inputs})[0]
    single = np.concatenate([ort.run(None, {feed: inputs[i : i + 1]})[0] for i in range(len(inputs))])
    worst = float(max(np.abs(together - expected).max(), np.abs(single - expected).max()))
    if not worst <= TOLERANCE:
        raise ModelError(f"export: {name} gives scores {worst:.2g} away from torch's, expected at most {TOLERANCE:g}")
    return worst
