"""How large a given file is: multiply-accumulate operations and parameters, counted in its graph."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto

from export.existing.given_file import GivenFile
from export.existing.graphs import nodes_of

Shapes = Mapping[str, tuple[int, ...]]


def parameters(given: GivenFile) -> int:
    """Numbers that a file holds: weights, and the thresholds and leaves of trees."""
    graph = given.plain.graph
    weights = sum(math.prod(t.dims) for t in graph.initializer if t.data_type != TensorProto.INT64)
    weights += sum(math.prod(t.values.dims) for t in graph.sparse_initializer)
    attributes = [attribute for node in nodes_of(graph) for attribute in node.attribute]
    constants = sum(math.prod(a.t.dims) for a in attributes if a.HasField("t") and a.t.data_type != TensorProto.INT64)
    return int(weights + constants) + sum(len(attribute.floats) for attribute in attributes)


def macs(given: GivenFile, largest: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulate operations of convolutions and matrix products for one input; 0 where they are unknown.

    Args:
        given: the file.
        largest: shape of one of each of its inputs, by name; the largest where it may differ.
    """
    model = onnx.ModelProto()
    model.CopyFrom(given.plain)
    for value in model.graph.input:
        axes = value.type.tensor_type.shape
        del axes.dim[:]
        for size in (1, *largest[value.name]):
            axes.dim.add().dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # inference raises whatever it likes; the count is of use, not needed
        return 0
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    counts = [_macs(node, shapes) for node in graph.node]
    return 0 if None in counts else sum(count for count in counts if count is not None)


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Of one node: 0 for one that multiplies no matrices, None where its shapes are unknown."""
    count_of = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}.get(node.op_type)
    if count_of is None:
        return 0
    named = [shapes.get(name) for name in (*node.input[:2], node.output[0])]
    if any(shape is None for shape in named):
        return None
    first, second, out = (shape for shape in named if shape is not None)
    return count_of(node, first, second, out)


def _conv(node: onnx.NodeProto, image: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]) -> int:
    return math.prod(out) * math.prod(kernel[1:])


def _conv_transpose(node: onnx.NodeProto, image: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]) -> int:
    return math.prod(image) * math.prod(kernel[1:])


def _gemm(node: onnx.NodeProto, a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * (a[0] if transposed else a[1])


def _matmul(node: onnx.NodeProto, a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...]) -> int:
    return math.prod(out) * a[-1]
