"""Puts the normalisation of pixels into an ONNX file: it takes UINT8 then, and clients send a quarter of the bytes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx_files import finish
from sensai_serve.preprocess import InputSpec

_PREFIX = "pixels"


def takes_pixels(data: bytes, spec: InputSpec) -> bytes:
    """A network's file with ``(raw * scale - mean) / std`` in front, in the order in which the server computes it.

    Args:
        data: takes `spec`, FP32 and normalised.
        spec: the input, with its normalisation.

    Returns:
        An ONNX file whose input of the same name is UINT8.
    """
    model = onnx.load_from_string(data)
    graph, norm, column = model.graph, spec.normalisation, (-1, *(1,) * (len(spec.shape) - 1))
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    prefix = next(name for name in (_PREFIX, *(f"{_PREFIX}{n}" for n in range(len(used) + 1)))
                  if not any(one.startswith(f"{name}/") for one in used))  # fmt: skip
    for node in graph.node:
        node.input[:] = [f"{prefix}/normalised" if name == spec.name else name for name in node.input]
    values = {
        "scale": np.float32(norm.scale),
        "mean": np.asarray(norm.mean, np.float32).reshape(column),
        "std": np.asarray(norm.std, np.float32).reshape(column),
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), f"{prefix}/{k}") for k, v in values.items())
    steps = [("Mul", "scale", "scaled"), ("Sub", "mean", "centred"), ("Div", "std", "normalised")]
    nodes, value = [helper.make_node("Cast", [spec.name], [f"{prefix}/numbers"], to=TensorProto.FLOAT)], "numbers"
    for operator, constant, made in steps:
        nodes.append(helper.make_node(operator, [f"{prefix}/{value}", f"{prefix}/{constant}"], [f"{prefix}/{made}"]))
        value = made
    for node in nodes:
        node.name = node.output[0]
    (taken,) = [value for value in graph.input if value.name == spec.name]
    taken.type.tensor_type.elem_type = TensorProto.UINT8
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return finish(model)
