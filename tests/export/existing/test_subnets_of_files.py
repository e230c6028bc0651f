"""Files of every kind become subnets that answer as the file itself does, for one input and for several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import finished, forest, linear

import sensai_serve
from export.existing.assemble import make_bundle
from export.existing.members import Member, parse_member
from export.existing.options import BundleOptions
from sensai_serve.bundles import Bundle

LABELS = ("cat", "dog", "owl")


def made(*paths: Path, out: Path, labels=LABELS, **options) -> Bundle:
    bundle = make_bundle(
        [parse_member(str(path)) for path in paths], out, labels=labels, options=BundleOptions(**options)
    )
    bundle.verify()
    return bundle


def scores(bundle: Bundle, inputs: np.ndarray) -> np.ndarray:
    """The first worker's scores, of all inputs at once and one by one, which must be the same."""
    network = sensai_serve.load(bundle)
    together = network.scores(inputs)[0]
    single = np.concatenate([network.scores(inputs[at : at + 1])[0] for at in range(len(inputs))])
    np.testing.assert_allclose(together, single, atol=1e-6)
    return together


def run(path: Path, inputs: np.ndarray, output: int = 0) -> np.ndarray:
    """What the file itself gives, one input at a time."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    return np.concatenate(
        [np.asarray(session.run(None, {feed: inputs[at : at + 1]})[output]) for at in range(len(inputs))]
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("batch", ["N", None, 1])
@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_every_batch_axis_and_float(network, tmp_path, batch, reshaped, element) -> None:
    path = network(batch=batch, reshaped=reshaped, element=element)
    bundle = made(path, out=tmp_path / "bundle")
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    expected = softmax(run(path, inputs.astype(helper.tensor_dtype_to_np_dtype(element))))
    np.testing.assert_allclose(scores(bundle, inputs), expected, atol=2e-3 if element == TensorProto.FLOAT16 else 1e-6)
    assert bundle.manifest.provenance["files"][0]["loop"] == reshaped


@pytest.mark.parametrize("element", [TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64])
def test_whole_numbers_are_taken_as_they_are(network, tmp_path, element) -> None:
    path = network(element=element)
    bundle = made(path, out=tmp_path / "bundle")
    assert bundle.manifest.input.dtype == TensorProto.DataType.Name(element)
    inputs = np.asarray([[0, 1, 7, 100], [100, 99, 3, 0]], helper.tensor_dtype_to_np_dtype(element))
    np.testing.assert_allclose(scores(bundle, inputs), softmax(run(path, inputs)), atol=1e-6)


def test_whole_numbers_of_a_type_that_is_not_served_are_rounded(network, tmp_path) -> None:
    path = network(element=TensorProto.INT8)
    bundle = made(path, out=tmp_path / "bundle")
    inputs = np.asarray([[0, 1, 7, 100], [100.4, 99.6, 3, 0]], np.float32)
    whole = np.asarray([[0, 1, 7, 100], [100, 100, 3, 0]], np.int8)
    np.testing.assert_allclose(scores(bundle, inputs), softmax(run(path, whole)), atol=1e-6)


def test_numbers_out_of_range_are_the_nearest_ones(network, tmp_path) -> None:
    path = network(element=TensorProto.UINT8)
    bundle = made(path, out=tmp_path / "bundle", scale=1.0)
    assert bundle.manifest.input.dtype == "FP32"
    given = scores(bundle, np.asarray([[-5, 300, 0, 255]], np.float32))
    np.testing.assert_allclose(given, softmax(run(path, np.asarray([[0, 255, 0, 255]], np.uint8))), atol=1e-6)


@pytest.mark.parametrize("batch", ["N", 1])
def test_pictures_whose_channels_are_last(network, tmp_path, batch) -> None:
    path = network(shape=(8, 6, 3), element=TensorProto.UINT8, batch=batch, reshaped=batch == 1)
    bundle = made(path, out=tmp_path / "bundle")
    spec = bundle.manifest.input
    assert (spec.shape, spec.image and spec.image.mode, spec.image and spec.image.resize) == ((3, 8, 6), "RGB", (8, 6))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3)).astype(np.uint8)
    assert spec.dtype == "UINT8"
    given = scores(bundle, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(given, softmax(run(path, pixels)), atol=1e-6)


def test_a_picture_file_is_read_as_the_network_expects(network, tmp_path) -> None:
    weight = np.zeros((3 * 4 * 4, 3))
    weight[::3, 0] = weight[1::3, 1] = weight[2::3, 2] = 0.1  # channels last: red, green, blue
    path = network(shape=(4, 4, 3), weight=weight)
    bundle = made(path, out=tmp_path / "bundle", mean=(0.5,), std=(0.5,), resize=(4,))
    from PIL import Image

    Image.new("RGB", (10, 8), (10, 250, 30)).save(tmp_path / "green.png")
    assert sensai_serve.load(bundle).predict(tmp_path / "green.png").label == "dog"
    assert bundle.manifest.input.normalisation.scale == pytest.approx(1 / 255)


@pytest.mark.parametrize("tail", [(), (1,), (1, 1)])
@pytest.mark.parametrize("activation", [None, "Softmax", "LogSoftmax", "Sigmoid"])
def test_what_files_give(network, tmp_path, activation, tail) -> None:
    path = network(activation=activation, tail=tail)
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    own = run(path, inputs).reshape(5, 3)
    expected = softmax(own) if activation in (None, "LogSoftmax") else own
    np.testing.assert_allclose(scores(made(path, out=tmp_path / "bundle"), inputs), expected, atol=1e-6)


def test_logits_that_look_like_scores(network, tmp_path) -> None:
    path = network(weight=np.asarray([[0.001, 0.002, 0.003]]), shape=(1,))
    bundle = made(path, out=tmp_path / "bundle")
    assert bundle.manifest.subnets[0].head == "softmax"


def test_what_the_user_says_of_the_outputs_holds(network, tmp_path) -> None:
    path = network()
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    given = scores(made(path, out=tmp_path / "bundle", activation="sigmoid"), inputs)
    np.testing.assert_allclose(given, 1 / (1 + np.exp(-run(path, inputs).astype(np.float64))), atol=1e-6)


@pytest.mark.parametrize("activation", [None, "Sigmoid"])
def test_one_number_for_two_classes(network, tmp_path, activation) -> None:
    path = network(outputs=1, activation=activation)
    bundle = made(path, out=tmp_path / "bundle", labels=("no", "yes"))
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    own = run(path, inputs).astype(np.float64)
    second = own if activation else 1 / (1 + np.exp(-own))
    np.testing.assert_allclose(scores(bundle, inputs), np.concatenate([1 - second, second], axis=1), atol=1e-6)


def test_names_that_are_ours_may_mean_something_else_in_a_file(network, tmp_path) -> None:
    model = linear(names=("scores", "input"), element=TensorProto.UINT8)
    path = network(model=model)
    bundle = made(path, out=tmp_path / "bundle")
    inputs = np.asarray([[1, 2, 3, 4]], np.uint8)
    np.testing.assert_allclose(scores(bundle, inputs), softmax(run(path, inputs)), atol=1e-6)


def test_several_outputs(network, tmp_path) -> None:
    model = linear()
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 4]))
    model.graph.node.append(helper.make_node("Sigmoid", ["y"], ["more"]))
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    path = network(model=model)
    np.testing.assert_allclose(scores(made(path, out=tmp_path / "one"), inputs), softmax(run(path, inputs)), atol=1e-6)
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 3]))
    path = network(model=model)
    given = scores(made(path, out=tmp_path / "named", output=("more",)), inputs)
    np.testing.assert_allclose(given, run(path, inputs, 2), atol=1e-6)


def test_outputs_of_one_class_each_are_taken_side_by_side(network, tmp_path) -> None:
    model = linear(outputs=2, activation="Sigmoid")
    split = helper.make_node("Split", ["y", "sizes"], ["a", "b"], axis=1)
    model.graph.node.append(split)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1, 1]), "sizes"))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in "ab")
    path = network(model=model)
    bundle = made(path, out=tmp_path / "bundle", labels=("first", "second"), output=("b", "a"))
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(scores(bundle, inputs), np.concatenate([run(path, inputs, 1), run(path, inputs, 0)], 1))


@pytest.mark.parametrize("zip_map", [False, True])
def test_trees(network, tmp_path, zip_map) -> None:
    path = network(model=forest(labels=[0, 1, 2], zip_map=zip_map))
    bundle = made(path, out=tmp_path / "bundle")
    given = scores(bundle, np.asarray([[-1, 1, 1, 0], [1, -1, 1, 0]], np.float32))
    np.testing.assert_allclose(given, [[2 / 3, 0, 1 / 3], [1 / 3, 2 / 3, 0]], atol=1e-6)
    assert bundle.manifest.subnets[0].parameters > 0


def test_a_file_that_names_its_classes_needs_no_labels_and_keeps_to_those_given(network, tmp_path) -> None:
    path = network(model=forest(labels=["owl", "cat", "dog"], zip_map=True))
    inputs = np.asarray([[-1, 1, 1, 0]], np.float32)
    own = made(path, out=tmp_path / "own", labels=None)
    assert own.manifest.labels == ("owl", "cat", "dog")
    named = made(path, out=tmp_path / "named")
    row = named.assignment.rows[0]
    given = dict(zip(row, scores(named, inputs)[0].tolist(), strict=True))
    assert given == pytest.approx({2: 2 / 3, 0: 0, 1: 1 / 3})
    assert sensai_serve.load(named).predict(inputs[0]).label == sensai_serve.load(own).predict(inputs[0]).label == "owl"
    assert named.manifest.kind == "full"


def test_free_sizes_are_said(network, tmp_path) -> None:
    model = linear(shape=(3, 2, 2))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].ClearField("dim_value")
    path = network(model=model)
    assert made(path, out=tmp_path / "bundle", shape=(3, 2, 2)).manifest.input.shape == (3, 2, 2)


def test_weights_in_another_file_are_taken_in(tmp_path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save_model(linear(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    bundle = made(path, out=tmp_path / "bundle")
    (tmp_path / "weights.bin").unlink()
    assert scores(bundle, np.zeros((1, 4), np.float32)).shape == (1, 3)


def test_functions_and_old_operator_sets(network, tmp_path) -> None:
    function = helper.make_function(
        "ours", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["twice"], domain="ours"), helper.make_node("Flatten", ["twice"], ["y"])]
    model = finished(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [],
        domains=("ours",),
    )
    model.functions.append(function)
    inputs = np.asarray([[0.1, 0.5, -0.2]], np.float32)
    given = scores(made(network("new", model), out=tmp_path / "new"), inputs)
    np.testing.assert_allclose(given, softmax(2 * inputs), atol=1e-6)
    old = network("old", opset=7)
    np.testing.assert_allclose(
        scores(made(old, out=tmp_path / "old"), np.ones((2, 4), np.float32)),
        softmax(run(old, np.ones((2, 4), np.float32))),
        atol=1e-6,
    )


def test_a_model_and_bytes_are_taken_too(tmp_path) -> None:
    model = linear()
    members = [Member(model, "model"), Member(model.SerializeToString(), "bytes")]
    bundle = make_bundle(members, tmp_path / "bundle", labels=LABELS)
    one, two = sensai_serve.load(bundle).scores(np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(one, two)
    assert bundle.manifest.name == "model"
