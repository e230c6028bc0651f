"""Makes a worker's subnet of a given file: what is needed in front of it and behind it becomes part of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.existing.given import Given
from export.existing.gives import Gives
from export.existing.graphs import free_name, keep_what_gives, rename, used_names
from export.existing.takes import Takes
from export.onnx_files import finish

SCORES = "scores"
INPUT = "input"
_OURS = "bundle"
_BATCH = "N"


def input_name(files: Sequence[tuple[Given, Takes]]) -> str:
    """The name of the input of all subnets: the files' own, where all have the same one and need nothing in front."""
    own = {given.input.name for given, _ in files}
    return own.pop() if len(own) == 1 and all(takes.same for _, takes in files) else INPUT


def wrap(given: Given, takes: Takes, gives: Gives, name: str, *, one_by_one: bool) -> bytes:
    """Make a subnet.

    Args:
        given: the file that it is made of.
        takes: the way to the file's input.
        gives: the way from its outputs to scores.
        name: of the subnet's input.
        one_by_one: a loop runs the file for one input after the other, because it takes no batches.

    Returns:
        An ONNX file: `name` FP32 [N, *shape] in, ``scores`` FP32 [N, k] out, N free.
    """
    model = onnx.ModelProto()
    model.CopyFrom(given.plain)
    graph = model.graph
    keep_what_gives(graph, gives.outputs)
    used = used_names(graph) | {name, SCORES}
    for taken in (name, SCORES):  # the file may use our names for something else
        if taken in used_names(graph):
            rename(graph, taken, free_name(f"{taken}/given", used))
            used = used_names(graph) | {name, SCORES}
    prefix = free_name(_OURS, {value.partition("/")[0] for value in used})
    own = graph.input[0].name
    outputs = _outputs(given, gives, graph)
    if one_by_one:
        nodes, constants = _loop(model, own, outputs, takes, prefix)
        front, front_constants = takes.nodes(name, f"{prefix}/taken")
    else:
        nodes, constants = list(graph.node), list(graph.initializer)
        front, front_constants = takes.nodes(name, own)
    flat, flat_constants = _side_by_side(outputs, gives, f"{prefix}/numbers")
    back, back_constants = gives.nodes(f"{prefix}/numbers", SCORES, f"{prefix}/scores")
    sparse = [] if one_by_one else list(graph.sparse_initializer)
    made = helper.make_graph(
        [*front, *nodes, *flat, *back],
        graph.name or "subnet",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [_BATCH, *takes.shape])],
        [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, [_BATCH, len(gives.columns)])],
        [*front_constants, *constants, *flat_constants, *back_constants],
        sparse_initializer=sparse,
    )
    model.graph.CopyFrom(made)
    return finish(model)


def _outputs(given: Given, gives: Gives, graph: onnx.GraphProto) -> list[str]:
    """The names in the graph of the outputs that scores are made of; one of them may have been renamed."""
    names = [value.name for value in given.plain.graph.output if value.name in gives.outputs]
    renamed = dict(zip(names, [value.name for value in graph.output], strict=True))
    return [renamed[output] for output in gives.outputs]


def _side_by_side(outputs: Sequence[str], gives: Gives, wanted: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes that make FP32 [N, width] of the outputs, whatever their type and their other axes."""
    nodes, parts = list[onnx.NodeProto](), list[str]()
    for number, output in enumerate(outputs):
        cast, flat = f"{wanted}/cast{number}", f"{wanted}/flat{number}"
        nodes.append(helper.make_node("Cast", [output], [cast], name=cast, to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Flatten", [cast], [flat], name=flat, axis=1))
        parts.append(flat)
    if len(parts) > 1:
        nodes.append(helper.make_node("Concat", parts, [f"{wanted}/joined"], name=f"{wanted}/joined", axis=1))
    shape = numpy_helper.from_array(np.asarray([-1, gives.width], np.int64), f"{wanted}/shape")
    last = nodes[-1].output[0]
    nodes.append(helper.make_node("Reshape", [last, shape.name], [wanted], name=wanted))
    return nodes, [shape]


def _loop(
    model: onnx.ModelProto, own: str, outputs: Sequence[str], takes: Takes, prefix: str
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """A Scan over the batch axis whose body is the given graph; it gives the values `outputs`, [N, ...] each."""
    body = onnx.GraphProto()
    body.CopyFrom(model.graph)
    used = used_names(body)
    one, flat = free_name("one", used), [free_name(f"{output}/one", used) for output in outputs]
    shapes = [
        numpy_helper.from_array(np.asarray([1, *takes.own], np.int64), free_name("one/shape", used)),
        numpy_helper.from_array(np.asarray([-1], np.int64), free_name("flat/shape", used)),
    ]
    first = helper.make_node("Reshape", [one, shapes[0].name], [own], name=own)
    last = [
        helper.make_node("Reshape", [output, shapes[1].name], [out], name=out)
        for output, out in zip(outputs, flat, strict=True)
    ]
    kinds = {value.name: value.type.tensor_type.elem_type for value in body.output}
    given = list(body.node)
    del body.node[:], body.input[:], body.output[:]
    body.node.extend([first, *given, *last])
    body.initializer.extend(shapes)
    body.input.append(helper.make_tensor_value_info(one, takes.element_type, takes.own))
    body.output.extend(
        helper.make_tensor_value_info(out, kinds[output], [None]) for output, out in zip(outputs, flat, strict=True)
    )
    scan = helper.make_node(
        "Scan", [f"{prefix}/taken"], list(outputs), name=f"{prefix}/scan", body=body, num_scan_inputs=1
    )
    return [scan], []
