"""All subnets of a bundle as one ONNX graph: one dispatch instead of one for each, where they share a device."""

from __future__ import annotations

from collections.abc import Sequence

OUTPUT = "scores"


def fuse(networks: Sequence[bytes], input_name: str) -> bytes:
    """Put networks that take the same input side by side.

    Args:
        networks: ONNX files with one input and the output ``scores`` [N, k], of the same opset.
        input_name: of their input.

    Returns:
        An ONNX file from that input to ``scores`` [N, sum of k], in the order of the networks.
    """
    import onnx
    from onnx import compose, helper

    models = [onnx.load_from_string(data) for data in networks]
    fused = onnx.ModelProto()
    fused.CopyFrom(models[0])
    graph = fused.graph
    for part in (graph.node, graph.initializer, graph.value_info, graph.output):
        del part[:]
    outputs, width = [], 0
    for index, model in enumerate(models):
        prefix = f"{index}/"
        compose.add_prefix(model, prefix, rename_inputs=False, inplace=True)
        graph.node.extend(model.graph.node)
        graph.initializer.extend(model.graph.initializer)
        outputs.append(prefix + OUTPUT)
        width += model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    graph.node.append(helper.make_node("Concat", outputs, [OUTPUT], axis=1))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["N", width]))
    if any(given.name != input_name for given in graph.input):
        raise ValueError(f"the networks take {graph.input[0].name}, expected {input_name}")
    data: bytes = fused.SerializeToString()
    return data
