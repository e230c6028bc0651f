"""Makes a worker's subnet of a given file: what is needed in front of it and behind it becomes part of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.existing.as_is import INPUT, SCORES, AsIs
from export.existing.file_input import FileInput
from export.existing.file_outputs import FileOutputs
from export.existing.given_file import GivenFile
from export.existing.graphs import free_name, keep_what_gives, rename, used_names
from export.onnx_files import finish
from sensai_serve.input_spec import ONNX_TYPES

_OURS = "bundle"
_BATCH = "N"
_TYPES = {datatype: number for number, datatype in ONNX_TYPES.items()}


def input_name(files: Sequence[tuple[GivenFile, FileInput]]) -> str:
    """The name of the input of all subnets: the files' own, where all have the same one and need nothing in front."""
    own = {given.input.name for given, _ in files}
    return own.pop() if len(own) == 1 and all(takes.same for _, takes in files) and own != {SCORES} else INPUT


def wrap(given: GivenFile, takes: FileInput | AsIs, gives: FileOutputs, name: str, *, one_by_one: bool) -> bytes:
    """Make a subnet.

    Args:
        given: the file that it is made of.
        takes: the way to the file's inputs.
        gives: the way from its outputs to scores.
        name: of the subnet's input, where there is one.
        one_by_one: a loop runs the file for one input after the other, because it takes no batches.

    Returns:
        An ONNX file: the bundle's inputs in, ``scores`` FP32 [N, k] out, N free.
    """
    model = onnx.ModelProto()
    model.CopyFrom(given.plain)
    graph = model.graph
    keep_what_gives(graph, gives.outputs)
    ours = {SCORES, *((spec.name for spec in takes.specs) if isinstance(takes, AsIs) else (name,))}
    used, owns = used_names(graph) | ours, [value.name for value in graph.input]
    for taken in sorted(ours):  # the file may use our names for something else
        if taken in used_names(graph) and not (isinstance(takes, AsIs) and taken in owns):
            rename(graph, taken, free_name(f"{taken}/given", used))
            used = used_names(graph) | ours
    prefix = free_name(_OURS, {value.partition("/")[0] for value in used})
    outputs = _outputs(given, gives, graph)
    front, front_constants = list[onnx.NodeProto](), list[TensorProto]()
    if isinstance(takes, AsIs):
        for own, spec in zip(takes.names, takes.specs, strict=True):
            if own != spec.name:
                rename(graph, own, spec.name)
        values, scanned = takes.values(_BATCH), [spec.name for spec in takes.specs]
    else:
        kind = _TYPES[takes.dtype]
        values, scanned = [helper.make_tensor_value_info(name, kind, [_BATCH, *takes.shape])], [f"{prefix}/taken"]
        front, front_constants = takes.nodes(name, scanned[0] if one_by_one else graph.input[0].name)
    if one_by_one:
        nodes, constants = _loop(model, scanned, outputs, takes, prefix)
    else:
        nodes, constants = list(graph.node), list(graph.initializer)
    flat, flat_constants = _side_by_side(outputs, gives, f"{prefix}/numbers")
    back, back_constants = gives.nodes(f"{prefix}/numbers", SCORES, f"{prefix}/scores")
    sparse = [] if one_by_one else list(graph.sparse_initializer)
    made = helper.make_graph(
        [*front, *nodes, *flat, *back],
        graph.name or "subnet",
        values,
        [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, [_BATCH, len(gives.columns)])],
        [*front_constants, *constants, *flat_constants, *back_constants],
        sparse_initializer=sparse,
    )
    model.graph.CopyFrom(made)
    return finish(model)


def _outputs(given: GivenFile, gives: FileOutputs, graph: onnx.GraphProto) -> list[str]:
    """The names in the graph of the outputs that scores are made of; one of them may have been renamed."""
    names = [value.name for value in given.plain.graph.output if value.name in gives.outputs]
    renamed = dict(zip(names, [value.name for value in graph.output], strict=True))
    return [renamed[output] for output in gives.outputs]


def _side_by_side(
    outputs: Sequence[str], gives: FileOutputs, wanted: str
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
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
    model: onnx.ModelProto, scanned: Sequence[str], outputs: Sequence[str], takes: FileInput | AsIs, prefix: str
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """A Scan over the batch axis whose body is the given graph; it gives the values `outputs`, [N, ...] each.

    Args:
        model: the given graph, whose inputs are in the order of `scanned`.
        scanned: the values that its inputs are rows of.
        outputs: of the graph.
        takes: the way to the file's inputs.
        prefix: of the names of nodes.
    """
    body = onnx.GraphProto()
    body.CopyFrom(model.graph)
    used, owns = used_names(body), [value.name for value in body.input]
    if isinstance(takes, AsIs):
        owns = [spec.name for spec in takes.specs]
    ones = [free_name(f"{own}/row", used) for own in owns]
    flat = [free_name(f"{output}/one", used) for output in outputs]
    if isinstance(takes, AsIs):
        rows, shapes_of = takes.scanned(ones), [spec.shape for spec in takes.specs]  # one axis at most may be free
    else:
        rows, shapes_of = [helper.make_tensor_value_info(ones[0], takes.element_type, takes.own)], [takes.own]
    shapes = [
        numpy_helper.from_array(np.asarray([1, *shape], np.int64), free_name(f"{own}/row/shape", used))
        for own, shape in zip(owns, shapes_of, strict=True)
    ]
    shapes.append(numpy_helper.from_array(np.asarray([-1], np.int64), free_name("flat/shape", used)))
    first = [
        helper.make_node("Reshape", [one, shape.name], [own], name=own)
        for one, shape, own in zip(ones, shapes[:-1], owns, strict=True)
    ]
    last = [
        helper.make_node("Reshape", [output, shapes[-1].name], [out], name=out)
        for output, out in zip(outputs, flat, strict=True)
    ]
    kinds = {value.name: value.type.tensor_type.elem_type for value in body.output}
    given = list(body.node)
    del body.node[:], body.input[:], body.output[:]
    body.node.extend([*first, *given, *last])
    body.initializer.extend(shapes)
    body.input.extend(rows)
    body.output.extend(
        helper.make_tensor_value_info(out, kinds[output], [None]) for output, out in zip(outputs, flat, strict=True)
    )
    scan = helper.make_node(
        "Scan", list(scanned), list(outputs), name=f"{prefix}/scan", body=body, num_scan_inputs=len(scanned)
    )
    return [scan], []
