"""Converts a torch network to the bytes of an ONNX file that holds nothing but the network."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import torch
from torch import nn

from sensai_serve.errors import ModelError

OUTPUT = "scores"
IR_VERSION = 10
"""Version of the ONNX file format; ONNX Runtime reads it from 1.18 on."""


def to_onnx(model: nn.Module, input_name: str, input_shape: Sequence[int]) -> bytes:
    """Export a network.

    Args:
        model: gives scores [N, k], the activation included, for inputs [N, *input_shape].
        input_name: name of the graph's input.
        input_shape: shape of one input, without the batch axis.

    Returns:
        An ONNX file: FP32 input, output ``scores``, N free, weights inside; without the names of source files and the
        lines of code that the exporter leaves in it.

    Raises:
        ModelError: the network cannot be exported.
    """
    model = model.cpu().eval()
    example = torch.zeros(2, *input_shape)  # 2: a batch axis of 1 would be taken for a constant
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


def finish(proto: onnx.ModelProto) -> bytes:
    """Serialise a model without what tools note about its source: paths of files, lines of code, modules."""
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    proto.doc_string = proto.graph.doc_string = ""
    proto.producer_name, proto.producer_version = "sensai-serve", ""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]
    data: bytes = proto.SerializeToString()
    return data


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters print, warn and log about their own insides while the block runs."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
            logging.root.handlers[:] = handlers  # logging.info() and the like bring a handler where there is none
