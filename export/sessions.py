"""ONNX Runtime sessions that evaluate and compare networks, on one core of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.anonymous_file import openable
from sensai_serve.tensors import Inputs, NamedInputs


def session(data: bytes, *, fused: bool = True) -> Any:
    """An ONNX Runtime session on one core of the CPU, its operators fused or run as they stand in the file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised too
    with openable(data) as network:
        return ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])


def scores_by(opened: Any, inputs: Inputs) -> npt.NDArray[np.float32]:
    """What a session gives for inputs: its first output."""
    feed = inputs.arrays if isinstance(inputs, NamedInputs) else {opened.get_inputs()[0].name: inputs}
    scores: npt.NDArray[np.float32] = opened.run(None, feed)[0]
    return scores
