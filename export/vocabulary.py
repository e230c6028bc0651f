"""How many tokens a network knows: read from the table that its tokens are looked up in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx

from sensai_serve.input_spec import InputSpec

_PASSING = ("Cast", "Identity")


def vocabulary_of(model: onnx.ModelProto, name: str) -> int | None:
    """The number of rows of the tables that an input's values are looked up in, of several the smallest.

    A value beyond it makes ONNX Runtime fail in the middle of a run; a server that knows it refuses the request.

    Args:
        model: the network.
        name: of the input.

    Returns:
        None where the input is looked up in no constant table, by rows.
    """
    tables = {constant.name: constant.dims[0] for constant in model.graph.initializer if constant.dims}
    values, sizes = {name}, list[int]()
    for node in model.graph.node:
        if node.op_type in _PASSING and node.input[0] in values:
            values.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in values and node.input[0] in tables:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            if axis == 0:
                sizes.append(int(tables[node.input[0]]))
    return min(sizes, default=None)


def with_vocabularies(specs: Sequence[InputSpec], data: bytes) -> tuple[InputSpec, ...]:
    """`specs` with the vocabulary of each input of whole numbers that has none and is looked up in a table.

    Args:
        specs: the inputs of a network.
        data: the network as an ONNX file.
    """
    model = onnx.load_from_string(data)
    return tuple(
        replace(spec, vocabulary=vocabulary_of(model, spec.name))
        if spec.dtype in ("INT32", "INT64") and spec.vocabulary is None
        else spec
        for spec in specs
    )
