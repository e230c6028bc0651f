"""Bundles: read, checked, refused, and written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sensai_serve.bundles import Bundle, atomic_directory, atomic_file, sha256_of
from sensai_serve.errors import BundleError, ChecksumError, OutputExistsError
from sensai_serve.golden import Golden
from sensai_serve.manifest import Manifest
from sensai_serve.onnx_signature import has_loops, read_signature


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def replace_subnet(bundle: Path, model: onnx.ModelProto, worker: int = 0) -> None:
    file = bundle / f"subnets/{worker:02}.onnx"
    file.write_bytes(model.SerializeToString())
    edit(bundle, lambda m: m["subnets"][worker].update(sha256=sha256_of(file)))


def network(outputs: int = 3, name: str = "scores", shape: tuple[Any, ...] = ("N", 3, 8, 8), **tensor: Any) -> Any:
    weight = numpy_helper.from_array(np.zeros((192, outputs), np.float32), "weight")
    if tensor.get("external"):
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../secret.bin")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], [name])],
        "g",
        [helper.make_tensor_value_info("input", tensor.get("dtype", TensorProto.FLOAT), shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", outputs])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_bundle_as_written_is_accepted(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    opened.verify()
    assert opened.assignment.offsets == (0, 1, 3)
    assert opened.assignment.rows[9] == (9, 0, 2)
    assert opened.reference() is not None
    assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest


def test_paths_that_are_no_bundle_are_said(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such directory, expected a directory with manifest\.json"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is not a bundle, expected a directory with"):
        Bundle.open(tmp_path)


def test_what_a_path_is_instead_of_a_bundle_is_said(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for file, path, message in (
        ("a.onnx", tmp_path / "a.onnx", "a file, which `sensai bundle` makes one of"),
        ("one/manifest.json", tmp_path, "a directory of bundles, which `sensai serve --repository` serves"),
        ("recipe.json", tmp_path, "a run, which `sensai export .* --out BUNDLE` makes one of"),
    ):
        (tmp_path / file).touch()
        with pytest.raises(BundleError, match=f"is not a bundle: {message}, expected a directory with"):
            Bundle.open(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "{}", '{"schema": 2}', "\x00\xff"])
def test_what_is_no_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "schema version '99', expected 1 or 2"),
        (lambda m: m.update(name="../x"), "name is '../x'"),
        (lambda m: m.pop("labels"), "labels is missing"),
        (lambda m: m.update(labels=["a", "a"]), "all different"),
        (lambda m: m.update(labels=m["labels"][:9]), "covers class 9, expected 0 to 8"),
        (lambda m: m.update(labels=[*m["labels"], "more"]), "no worker covers class 10"),
        (lambda m: m["subnets"].pop(3), "workers are"),
        (lambda m: m["subnets"][2].update(worker="2"), r"subnets\[2\]\.worker is '2', expected a whole number"),
        (lambda m: m["subnets"][2].update(classes=[1, 1]), "covers a class twice"),
        (lambda m: m["subnets"][2].update(sha256="abc"), "expected a SHA-256"),
        (lambda m: m["subnets"][2].update(file="../02.onnx"), "expected a path inside the bundle"),
        (lambda m: m["subnets"][2].update(file="/etc/passwd"), "expected a path inside the bundle"),
        (lambda m: m.update(reference="a/../../b"), "expected a path inside the bundle"),
        (lambda m: m["input"].update(shape=[]), "at least one axis"),
        (lambda m: m["merge"].update(threshold=2), "threshold is 2"),
        (lambda m: m.update(merge=[]), "merge is '\\[\\]', expected an object"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(bundle: Path, change: Any, message: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize("file", ["subnets/04.onnx", "reference.onnx", "golden.npz"])
def test_a_file_that_was_changed_or_is_gone_is_found(bundle: Path, file: str) -> None:
    (bundle / file).write_bytes((bundle / file).read_bytes()[:-1])
    with pytest.raises(ChecksumError, match=f"{file} has SHA-256 .* expected"):
        Bundle.open(bundle).verify()
    (bundle / file).unlink()
    with pytest.raises(BundleError, match=f"{file} cannot be read: No such file"):
        Bundle.open(bundle).verify()


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.onnx").write_bytes((bundle / "subnets/00.onnx").read_bytes())
    (bundle / "subnets/00.onnx").unlink()
    (bundle / "subnets/00.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(bundle).subnet(0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(outputs=4), r"gives scores FP32 \[N, 4\], expected scores FP32 \[N, 3\]"),
        (network(name="logits"), "gives logits FP32"),
        (network(shape=("N", 3, 9, 9)), r"takes input FP32 \[N, 3, 9, 9\], expected input FP32 \[N, 3, 8, 8\]"),
        (network(shape=(1, 3, 8, 8)), r"takes input FP32 \[1, 3, 8, 8\]"),
        (network(dtype=TensorProto.DOUBLE), "takes input type 11"),
        (network(external=True), "keeps weights in another file"),
    ],
)
def test_a_network_that_does_not_fit_the_manifest_is_refused(bundle: Path, model: Any, message: str) -> None:
    replace_subnet(bundle, model)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle).subnet(0)


def test_external_data_is_found_in_nested_graphs() -> None:
    inner = network(external=True).graph
    outer = network()
    outer.graph.node.append(
        helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=network().graph)
    )
    assert read_signature(outer.SerializeToString()).external_data
    assert not read_signature(network().SerializeToString()).external_data
    assert has_loops(outer.SerializeToString())
    assert not has_loops(network().SerializeToString())
    assert not has_loops(b"no network")


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 255))
def test_no_bytes_crash_the_onnx_reader(noise: bytes, at: int, value: int) -> None:
    spoilt = bytearray(network().SerializeToString())
    spoilt[at % len(spoilt)] = value
    for data in (noise, bytes(spoilt), bytes(spoilt[: at % len(spoilt)])):
        try:
            read_signature(data)
        except BundleError as error:
            assert "ONNX" in str(error)


@pytest.mark.parametrize("spoil", ["pickle", "shape", "missing", "noise"])
def test_golden_samples_that_do_not_fit_are_refused(bundle: Path, spoil: str) -> None:
    golden = Bundle.open(bundle).golden()
    arrays = {"inputs": golden.inputs, "scores": golden.scores, "class_id": golden.class_id}
    if spoil == "pickle":
        arrays["scores"] = np.array([{}] * 8, dtype=object)
    elif spoil == "shape":
        arrays["scores"] = golden.scores[:, :9]
    elif spoil == "missing":
        del arrays["class_id"]
    np.savez(bundle / "golden.npz", **arrays)
    if spoil == "noise":
        (bundle / "golden.npz").write_bytes(b"PK\x03\x04 and no more")
    edit(bundle, lambda m: m["checksums"].update({"golden.npz": sha256_of(bundle / "golden.npz")}))
    with pytest.raises(BundleError, match=r"golden\.npz"):
        Bundle.open(bundle).golden()


def test_golden_samples_that_would_take_gigabytes_are_refused_before_they_are_inflated(bundle: Path) -> None:
    count = 500_000
    arrays = {"inputs": np.zeros((count, 3, 8, 8), np.int8), "scores": np.zeros((count, 10), np.int8)}
    np.savez_compressed(bundle / "golden.npz", **arrays, class_id=np.zeros(count, np.int8))
    assert (bundle / "golden.npz").stat().st_size < 200_000
    edit(bundle, lambda m: m["checksums"].update({"golden.npz": sha256_of(bundle / "golden.npz")}))
    opened = Bundle.open(bundle)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"golden\.npz: has \d+ elements, expected at most \d+"):
            opened.golden()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["manifest.json", "golden.npz", "subnets/04.onnx"])
def test_only_regular_files_of_a_possible_size_are_read(bundle: Path, name: str) -> None:
    path = bundle / name
    with path.open("r+b") as file:
        file.truncate(2**32)  # sparse
    with pytest.raises(BundleError, match=f"{name} cannot be read: it has more than [0-9]+ bytes"):
        Bundle.open(bundle).verify()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match=f"{name} cannot be read: it is no regular file"):
        Bundle.open(bundle).verify()


def test_the_golden_check_allows_rounding_and_nothing_else() -> None:
    golden = Golden(np.zeros((2, 1)), np.array([[0.9, 0.1], [0.5, 0.499]], np.float32), np.array([0, 0]))  # type: ignore[arg-type]
    golden.check(golden.scores + 9e-4, np.array([0, 1]))  # the second margin is below 2e-3: either class will do
    with pytest.raises(BundleError, match=r"golden sample 1: the score of class 0 is 0\.502000, expected 0\.500000"):
        golden.check(golden.scores + np.array([[0, 0], [2e-3, 0]]), golden.class_id)
    with pytest.raises(BundleError, match="golden sample 0: the class is 1, expected 0"):
        golden.check(golden.scores, np.array([1, 0]))
    with pytest.raises(BundleError, match="is nan"):
        golden.check(np.full((2, 2), np.nan), golden.class_id)


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with pytest.raises(RuntimeError), atomic_directory(target) as directory:
        (directory / "half").write_text("written")
        raise RuntimeError
    assert list(tmp_path.glob("deep/*")) == []
    with atomic_directory(target) as directory:
        (directory / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for taken, message in (
        (tmp_path, "is not empty, expected a new or empty directory"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(OutputExistsError, match=message), atomic_directory(taken):
            pass
    assert (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as directory:
        (directory / "a").touch()
    assert (tmp_path / "empty/a").exists()


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_bundle_is_replaced_where_that_is_asked_for(tiny_bundle, tmp_path, monkeypatch, in_one_step) -> None:
    if not in_one_step:
        monkeypatch.setattr("ctypes.CDLL", lambda *args, **options: object())  # a system without such a call
    bundle, link = tmp_path / "bundle", tmp_path / "link"
    shutil.copytree(tiny_bundle, bundle)
    link.symlink_to(bundle)
    with pytest.raises(RuntimeError), atomic_directory(link, replace=True) as directory:
        (directory / "half").write_text("written")
        raise RuntimeError
    Bundle.open(bundle).verify()
    with atomic_directory(link, replace=True) as directory:
        (directory / "file").write_text("new")
    assert link.is_symlink()
    assert [path.name for path in bundle.iterdir()] == ["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "link"]
    with pytest.raises(OutputExistsError, match="only a bundle is replaced"), atomic_directory(bundle, replace=True):
        pass


def test_a_file_is_replaced_in_one_step_or_stays(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    with atomic_file(file) as temporary:
        temporary.write_text("new")
    assert file.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]
