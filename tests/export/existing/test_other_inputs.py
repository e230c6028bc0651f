"""Files of several inputs, of tokens and of axes of any size become bundles that take the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from input_fixtures import KINDS, Pooled, drawn
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import finished, linear

import sensai_serve
from export.existing.assemble import make_bundle
from export.existing.members import parse_member
from export.existing.options import BundleOptions
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from sensai_serve.input_spec import DYNAMIC, InputSpec
from sensai_serve.tensors import Inputs

LABELS = ("cat", "dog", "owl")


@pytest.fixture
def files(tmp_path: Path):
    """Writes `Pooled` networks of some inputs, and gives their paths and the networks."""

    def write(specs: tuple[InputSpec, ...], n: int = 1) -> tuple[list[Path], list[Pooled]]:
        random = np.random.default_rng(0)
        networks = [Pooled(specs, len(LABELS), random) for _ in range(n)]
        paths = [tmp_path / f"{number}.onnx" for number in range(n)]
        for path, network in zip(paths, networks, strict=True):
            path.write_bytes(network.onnx())
        return paths, networks

    return write


def made(paths: list[Path], out: Path, **options) -> sensai_serve.Bundle:
    members = [parse_member(str(path)) for path in paths]
    bundle = make_bundle(members, out, labels=LABELS, options=BundleOptions(**options))
    bundle.verify()
    return bundle


@pytest.mark.parametrize("kind", ["int32", "bool", "tokens", "several", "series"])
def test_a_bundle_takes_what_its_files_take(files, tmp_path, kind: str) -> None:
    specs = KINDS[kind]
    paths, networks = files(specs, 2)
    maximum = next((spec.maximum for spec in specs if spec.maximum), None)
    bundle = made(paths, tmp_path / "bundle", maximum=maximum)
    for spec, found in zip(specs, bundle.manifest.inputs, strict=True):
        assert (found.name, found.dtype, found.shape) == (spec.name, spec.dtype, spec.shape)
        assert (found.maximum, found.vocabulary) == (spec.maximum, spec.vocabulary)
    for length in (1, 7):
        inputs = drawn(specs, 3, length, length)
        for network, scores in zip(networks, sensai_serve.load(bundle).scores(inputs), strict=True):
            np.testing.assert_allclose(scores, network(inputs), atol=1e-6)


def test_axes_that_files_name_alike_have_one_size(tmp_path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("ReduceSum", ["c", "axes"], ["s"])]
    nodes += [helper.make_node("MatMul", ["s", "weight"], ["y"])]
    constants = [
        numpy_helper.from_array(np.asarray([1]), "axes"),
        numpy_helper.from_array(np.ones((2, 3), np.float32), "weight"),
    ]
    given = [value(name, TensorProto.FLOAT, ["batch", "steps", 2]) for name in "ab"]
    model = finished(nodes, given, [value("y", TensorProto.FLOAT, ["batch", "one", 3])], constants)
    onnx.save(model, tmp_path / "two.onnx")
    nodes[1].attribute.append(helper.make_attribute("keepdims", 0))
    model = finished(nodes, given, [value("y", TensorProto.FLOAT, ["batch", 3])], constants)
    onnx.save(model, tmp_path / "two.onnx")
    bundle = made([tmp_path / "two.onnx"], tmp_path / "bundle", maximum=(9,))
    assert [spec.axes for spec in bundle.manifest.inputs] == [("steps",), ("steps",)]
    assert [spec.shape for spec in bundle.manifest.inputs] == [(DYNAMIC, 2), (DYNAMIC, 2)]
    with pytest.raises(InputError, match="input 'b': steps is 3, expected 2, which input 'a' has"):
        sensai_serve.load(bundle).predict({"a": np.zeros((2, 2)), "b": np.zeros((3, 2))})


def fixed_inside(length: int) -> onnx.ModelProto:
    """A file that says that its length is free, and reshapes to the one that it was traced with."""
    model = linear(shape=(length,), reshaped=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    return model


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        (fixed_inside(16), ("--maximum", "20"), "does not run on an input of [1]"),
        (
            fixed_inside(16),
            ("--maximum", "1", "--shape", "16"),
            "expected sizes of 1 or more, and no --shape beside it",
        ),
        (fixed_inside(16), (), "say --shape, one input's shape without the batch axis, or --maximum"),
    ],
)
def test_what_cannot_be_taken_is_refused(tmp_path, capsys, model, arguments, said) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    onnx.save(model, tmp_path / "x.onnx")
    given = [str(tmp_path / "x.onnx"), "--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["bundle", *given, *arguments, "--quiet"])
    line = capsys.readouterr().err
    assert (ended.value.code, line.count("\n")) == (2, 1), line
    assert said in line


def test_files_that_take_different_inputs_are_refused(files, tmp_path) -> None:
    tokens, _ = files(KINDS["tokens"])
    other = tmp_path / "other"
    other.mkdir()
    several = Pooled(KINDS["several"], 3, np.random.default_rng(0))
    (other / "several.onnx").write_bytes(several.onnx())
    with pytest.raises(InputError, match=r"takes input_ids INT64 .* and attention_mask BOOL .*, expected input_ids"):
        made([*tokens, other / "several.onnx"], tmp_path / "bundle", maximum=(12,))


def test_inputs_of_a_file_make_golden_samples(files, tmp_path, capsys) -> None:
    paths, _ = files(KINDS["several"])
    inputs: Inputs = drawn(KINDS["several"], 9, 4, 6)
    np.savez(tmp_path / "inputs.npz", **inputs.arrays)  # type: ignore[union-attr]
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    given = [str(paths[0]), "--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "out"), "--maximum", "12"]
    with pytest.raises(SystemExit) as ended:
        main(["bundle", *given, "--data", str(tmp_path / "inputs.npz"), "--quiet"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "input: input_ids, tokens INT64 [length of 1 to 12] of a vocabulary of 50" in said.out
    golden = sensai_serve.Bundle.open(tmp_path / "out").golden()
    ids = golden.inputs.arrays["input_ids"]  # type: ignore[union-attr]
    assert all(any((row == one).all() for one in inputs.arrays["input_ids"]) for row in ids)  # type: ignore[union-attr]
