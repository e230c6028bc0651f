"""Files of several inputs, of tokens and of axes of any size become bundles that take the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from input_fixtures import KINDS, Pooled, drawn
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import finished, linear
from text_fixtures import TEXT_KINDS, word_tokenizer

import sensai_serve
from export.existing.assemble import make_bundle
from export.existing.members import parse_member
from export.existing.options import BundleOptions
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from sensai_serve.input_spec import DYNAMIC, InputSpec
from sensai_serve.tensors import Inputs, NamedInputs

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


def made(paths: list[Path], out: Path, tokenizer: bytes | None = None, **options) -> sensai_serve.Bundle:
    members = [parse_member(str(path)) for path in paths]
    bundle = make_bundle(members, out, labels=LABELS, options=BundleOptions(**options), tokenizer=tokenizer)
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


def test_a_tokenizer_makes_the_inputs_of_files(files, tmp_path, capsys) -> None:
    specs, spec = TEXT_KINDS["text"]
    paths, networks = files(specs)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    (tmp_path / "words.json").write_bytes(word_tokenizer())
    given = ["bundle", str(paths[0]), "--labels", str(tmp_path / "labels.txt"), "--maximum", "12", "--quiet"]
    given += ["--tokenizer", str(tmp_path / "words.json"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--long-texts", "cut"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "texts: of at most 12 tokens, longer ones are cut; made input_ids, attention_mask" in said.out
    bundle = sensai_serve.Bundle.open(tmp_path / "out")
    assert bundle.manifest.tokenizer == dataclasses.replace(spec, too_long="cut")
    bundle.verify()
    scores = sensai_serve.load(bundle).predict("Guten Tag").scores
    ids = np.array([[2, 4, 5, 3]])
    expected = networks[0](NamedInputs({"input_ids": ids, "attention_mask": np.ones_like(ids)}))
    assert list(scores.values()) == pytest.approx(expected[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("specs", "tokenizer", "said"),
    [
        (TEXT_KINDS["text"][0], b"{}", "the tokenizer has no model"),
        (
            TEXT_KINDS["text"][0],
            word_tokenizer(added_tokens=[{"id": 10, "content": "x"}]),
            "tokens up to 10, expected at most 9, the vocabulary of 'input_ids'",
        ),
        (KINDS["series"], word_tokenizer(), "the inputs are series FP32 .*, expected one for tokens"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(files, tmp_path, specs, tokenizer, said) -> None:
    paths, _ = files(specs)
    maximum = next(spec.maximum for spec in specs if spec.maximum)
    with pytest.raises(InputError, match=said):
        made(paths, tmp_path / "bundle", maximum=maximum, tokenizer=tokenizer)
    assert not (tmp_path / "bundle").exists()


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
