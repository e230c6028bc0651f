"""What cannot be taken is refused by name, in one line that says what is wrong and the way out."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import finished, forest, linear

from sensai_serve.cli.main import main


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs ``sensai bundle`` and gives the line that it ends with."""
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")

    def run(*arguments) -> str:
        out = tmp_path / "bundle"
        given = ["bundle", *map(str, arguments), "--labels", str(tmp_path / "labels.txt"), "--out", str(out), "--quiet"]
        with pytest.raises(SystemExit) as ended:
            main(given)
        said = capsys.readouterr()
        assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1), said
        assert not out.exists()
        return said.err

    return run


def two_inputs() -> onnx.ModelProto:
    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, ["N"]))
    return model


def strange_beside_another() -> onnx.ModelProto:
    model = linear(names=("x", "z"))
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.INT8, ["N", 2]))
    return model


def custom() -> onnx.ModelProto:
    model = linear()
    model.graph.node.append(helper.make_node("Whirl", ["y"], ["z"], domain="acme.ops"))
    model.opset_import.append(helper.make_opsetid("acme.ops", 1))
    return model


def labels_only() -> onnx.ModelProto:
    model = forest(labels=[0, 1, 2], zip_map=False)
    del model.graph.output[1]
    return model


def sequence() -> onnx.ModelProto:
    model = linear()
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["sequence"]))
    del model.graph.output[:]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("sequence", kind))
    return model


def text_input() -> onnx.ModelProto:
    nodes = [helper.make_node("StringNormalizer", ["x"], ["y"])]
    value = helper.make_tensor_value_info
    return finished(nodes, [value("x", TensorProto.STRING, [1, 1])], [value("y", TensorProto.STRING, [1, 1])], [])


def outside() -> onnx.ModelProto:
    """Weights in a file that is not there."""
    model = linear()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "gone.bin")
    model.graph.initializer[0].ClearField("raw_data")
    return model


def not_finite() -> onnx.ModelProto:
    model = linear(activation="Log")
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(-abs(numpy_helper.to_array(model.graph.initializer[0])), "weight")
    )
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (two_inputs(), "takes lengths of shape [0], expected a batch axis and at least one more"),
        (strange_beside_another(), "takes y of int8, expected FP32, FP16"),
        (custom(), "it uses acme.ops:Whirl"),
        (labels_only(), "gives label (a tensor of int64), expected floating-point scores"),
        (sequence(), "gives sequence (sequence), expected floating-point scores"),
        (text_input(), "takes x, a tensor of string, expected a tensor of numbers"),
        (outside(), "keeps weights in another file that cannot be taken in"),
        (not_finite(), "gives numbers that are not finite"),
        (linear(batch=8), "takes batches of 8 only, expected any number or 1"),
        (linear(outputs=4), "gives y of 4 numbers, expected 3, one for each class: say FILE=class,class"),
        (forest(labels=["a", "b", "c"], zip_map=True), "names its classes a, b, c, expected cat, dog, owl"),
    ],
)  # fmt: skip
def test_files(network, refused, model, said) -> None:
    path = network("theirs", model)
    line = refused(path)
    assert str(path) in line
    assert said in line


def test_free_sizes(network, refused) -> None:
    model = linear()
    model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    assert "takes [any] for one input, expected sizes: say --shape" in refused(network(model=model))
    assert "expected a shape that is [3, 4]" in refused(network(model=model), "--shape", "3,4")


def test_two_outputs_that_could_be_it(network, refused) -> None:
    model = linear()
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]))
    assert "gives y of 3 numbers, logits of 3 numbers, expected one of them: say --output" in refused(
        network(model=model)
    )
    assert "has no output 'z' of numbers, expected one of y, logits" in refused(network(model=model), "--output", "z")


def test_files_that_disagree(network, refused) -> None:
    first = network("first")
    classes = network("classes", outputs=5)
    assert f"{classes} gives y of 5 numbers, expected 3" in refused(first, classes)
    shape = network("shape", shape=(5,))
    assert f"{shape} takes [5] for one input, expected [4]" in refused(first, shape)
    kind = network("kind", element=TensorProto.UINT8)
    assert f"{kind} takes whole numbers and {first} does not" in refused(first, kind)


def test_what_is_no_model(tmp_path, network, refused) -> None:
    assert "is not there, expected an ONNX file" in refused(tmp_path / "gone.onnx")
    assert "is a directory, expected an ONNX file" in refused(tmp_path)
    (tmp_path / "text.onnx").write_text("hello")
    assert "text.onnx is not an ONNX model" in refused(tmp_path / "text.onnx")
    whole = network().read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    assert "half.onnx" in refused(tmp_path / "half.onnx")


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("cat,cow,owl", "is of class 'cow', expected one of cat, dog, owl; or - for none"),
        ("cat,cat,owl", "names a class twice"),
        ("-,-,-", "names no class"),
        ("cat,dog", "gives y of 3 numbers, expected 2"),
        ("cat,dog,-", "no worker covers class 2"),
    ],
)
def test_classes_of_a_file(network, refused, classes, said) -> None:
    assert said in refused(f"{network()}={classes}")


def test_options(tmp_path, network, refused) -> None:
    path = network()
    (tmp_path / "mapping.toml").write_text("[[models]]\nfile = 'network.onnx'\nkind = 'cat'\n")
    assert "expected ONNX files, or --mapping" in refused()
    assert "expected ONNX files, or --mapping" in refused(path, "--mapping", tmp_path / "mapping.toml")
    assert "models[0] has 'kind', expected file, classes" in refused("--mapping", tmp_path / "mapping.toml")
    assert "replicas is 0, expected at least 1" in refused(path, "--replicas", "0")
    assert "found on labelled data, and there is none, expected --data" in refused(path, "--merge", "auto")
    assert "--scale 1" in refused(network("picture", shape=(3, 4, 4)), "--image", "RGB").replace(
        "--scale (1", "--scale 1"
    )
    assert "expected pictures of mode RGB" in refused(path, "--image", "RGB", "--scale", "1")
    assert "softmax, sigmoid, none" in refused(path, "--activation", "tanh")
    assert "--mean is 'a', expected numbers" in refused(path, "--mean", "a")
    over = network("over", weight=10 * numpy_helper.to_array(linear().graph.initializer[0]))
    assert "expected 0 to 1 for --activation none" in refused(over, "--activation", "none")
    assert "is the reference, expected one for all classes" in refused(path, "--reference", f"{path}=-,dog,owl")


def test_labels(tmp_path, network, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bundle", str(network()), "--out", str(tmp_path / "bundle")])
    assert "no labels are given, expected --labels" in capsys.readouterr().err
