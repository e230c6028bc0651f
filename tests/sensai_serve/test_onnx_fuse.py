"""Fused networks give the scores that the networks give alone; what cannot be renamed is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from sensai_serve.onnx_fuse import CannotFuseError, fuse

SHAPE = (3,)


def network(seed: int, *, opset: int = 17, name: str = "input", output: str = "scores", branch: bool = False) -> bytes:
    """A network FP32 [N, 3] to ``scores`` FP32 [N, 2] whose tensors are called as in every other one of these."""
    random = np.random.default_rng(seed)
    weight = helper.make_tensor("weight", TensorProto.FLOAT, (3, 2), random.normal(size=6).astype(np.float32))
    low = helper.make_tensor("low", TensorProto.FLOAT, (), [0.0])
    nodes = [
        helper.make_node("MatMul", [name, "weight"], ["logits"], "same name"),
        helper.make_node("Clip", ["logits", "low", ""], ["clipped"]),  # an input that is left out
        helper.make_node("Sigmoid", ["clipped"], ["scores"]),
    ]
    if branch:
        inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)])
        nodes.insert(2, helper.make_node("If", ["condition"], ["unused"], then_branch=inner, else_branch=inner))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", *SHAPE))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ("N", 2))],
        [weight, low],
        value_info=[helper.make_tensor_value_info("clipped", TensorProto.FLOAT, ("N", 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def run(data: bytes, inputs: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_scores_are_those_that_each_network_gives_alone(count: int) -> None:
    networks = [network(seed) for seed in range(count)]
    inputs = np.random.default_rng(9).normal(size=(4, *SHAPE)).astype(np.float32)
    fused = fuse(networks, "input")
    onnx.checker.check_model(onnx.load_from_string(fused), full_check=True)
    (scores,) = run(fused, inputs)
    assert np.array_equal(scores, np.concatenate([run(network, inputs)[0] for network in networks], axis=1))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (network(1, opset=16), "operator sets"),
        (network(1, name="picture"), "an input picture"),
        (network(1, branch=True), "subgraphs"),
        (network(1, output="logits"), "an output logits"),
        (network(1)[:-3], "no ONNX model"),
    ],
)
def test_what_cannot_be_fused_is_refused(other: bytes, message: str) -> None:
    with pytest.raises(CannotFuseError, match=message):
        fuse([network(0), other], "input")
