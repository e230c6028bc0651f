"""Tries whether a network of a run can be exported: before a run is made, and on a few inputs."""

from __future__ import annotations

from export.parity import check_parity
from export.to_onnx import to_onnx
from pruning.run import Run
from sensai_serve.tensors import Inputs


def try_export(run: Run, name: str, inputs: Inputs) -> None:
    """Export the network of that name in FP32 and compare it with torch; nothing is kept.

    Args:
        run: the run that holds it.
        name: name of the network.
        inputs: some, ready for the network.

    Raises:
        ModelError: it cannot be exported, or its scores are too far from torch's.
    """
    network = run.load(name)
    check_parity(network, to_onnx(network, run.network_inputs), inputs, name)
