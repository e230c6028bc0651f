"""ONNX Runtime sessions that evaluate and compare networks, on one core of the CPU."""

from __future__ import annotations

from typing import Any


def session(data: bytes, *, fused: bool = True) -> Any:
    """An ONNX Runtime session on one core of the CPU, its operators fused or run as they stand in the file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised too
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
