"""Converts a torch network to the bytes of an ONNX file that holds nothing but the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from export.onnx_files import finish, quiet
from sensai_serve.errors import ModelError

OUTPUT = "scores"


def to_onnx(model: nn.Module, input_name: str, input_shape: Sequence[int], *, tokens: bool = False) -> bytes:
    """Export a network.

    Args:
        model: gives scores [N, k], the activation included, for inputs [N, *input_shape].
        input_name: name of the graph's input.
        input_shape: shape of one input, without the batch axis.
        tokens: inputs are INT64.

    Returns:
        An ONNX file: FP32 or INT64 input, output ``scores``, N free, weights inside; without the names of source files
        and the lines of code that the exporter leaves in it.

    Raises:
        ModelError: the network cannot be exported.
    """
    model = model.cpu().eval()
    example = torch.zeros(
        2, *input_shape, dtype=torch.int64 if tokens else torch.float32
    )  # 2: a batch axis of 1 would be taken for a constant
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=[input_name],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's own failures are of any kind
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"export: the network has something that ONNX export cannot express ({first})") from None
    if program is None:
        raise ModelError("export: torch gave no ONNX program")
    return finish(program.model_proto)
