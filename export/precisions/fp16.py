"""``fp16``: weights and arithmetic in half precision, for cards that compute faster in it; half the size anywhere.

ONNX Runtime has no half-precision convolutions for x86: it casts back to FP32 there, and gains nothing.
The converter is the one that comes with ONNX Runtime; onnxconverter-common, which it was copied from, would be one more
dependency, and exporting a torch network that was cast to half would fold batch normalisation in half precision too.
"""

from __future__ import annotations

import onnx
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from export.onnx_files import finish, quiet
from export.precisions import Precision, Tolerance, output_nodes
from sensai_serve.tensors import Inputs


def convert(data: bytes, inputs: Inputs) -> bytes:
    """Convert an FP32 ONNX file to this precision; see `export.precisions.Precision`."""
    model = onnx.load_from_string(data)
    with quiet():
        model = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=DEFAULT_OP_BLOCK_LIST,
            node_block_list=output_nodes(model),
        )
        _keep_output(model)
        sorted_model = ONNXModel(model)
        sorted_model.topological_sort()
    return finish(sorted_model.model)


def _keep_output(model: onnx.ModelProto) -> None:
    """Take out the two casts, to half and back, that the converter leaves between an FP32 node and an FP32 output."""
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    for output in graph.output:
        widen = producers[output.name]
        narrow = producers.get(widen.input[0])
        if widen.op_type != "Cast" or narrow is None or narrow.op_type != "Cast":
            continue
        source = producers[narrow.input[0]]
        for index, name in enumerate(source.output):
            if name == narrow.input[0]:
                source.output[index] = output.name
        graph.node.remove(widen)
        graph.node.remove(narrow)


precision = Precision(convert, Tolerance(worst=2e-2, mean=2e-3))
