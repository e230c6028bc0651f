"""Bundles in half precision and in eight bits: FP32 outside, close to torch, checked, served; and the monolith."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.subjects.in_process import in_process
from benchmarks.subjects.networks import monolith
from export import precisions
from export.assemble import export
from export.networks import choose_golden
from export.parity import Difference, check_parity
from export.precisions import Precision, Tolerance
from export.sessions import session
from export.to_onnx import to_onnx
from pruning import heads, models
from pruning.heads import Subnet
from sensai_serve.bundles import Bundle, sha256_of
from sensai_serve.cli.main import main
from sensai_serve.errors import ModelError, PluginError
from sensai_serve.input_spec import InputSpec
from sensai_serve.local import load
from sensai_serve.onnx_signature import read_signature
from serving.engine.options import GatewayOptions
from serving.runtime.devices import default_devices

SMALL = ["fp16", "int8"]
AGREEMENT = 0.9
"""Agreement that the small bundles' thresholds are fitted to."""


@pytest.fixture(scope="module", params=SMALL)
def small_bundle(request, digits_run, make_once) -> Bundle:
    run = dataclasses.replace(digits_run, recipe=dataclasses.replace(digits_run.recipe, agreement=AGREEMENT))

    def make(path: Path) -> None:
        export(run, path, precision=request.param, padding=1, with_monolith=True)

    return Bundle.open(make_once(f"digits-{request.param}", make))


def test_a_small_bundle_verifies_and_keeps_its_accuracy_beside_that_of_fp32(small_bundle, digits_bundle):
    small_bundle.verify()
    name = small_bundle.manifest.provenance["precision"]["name"]
    accuracy = small_bundle.manifest.accuracy
    assert accuracy[f"validation_{name}"] == pytest.approx(accuracy["validation_fp32"], abs=0.03)
    assert accuracy["test"] == pytest.approx(digits_bundle.manifest.accuracy["test"], abs=0.03)
    assert accuracy["reference"] == digits_bundle.manifest.accuracy["reference"]
    assert set(small_bundle.manifest.provenance["precision"]["largest_subnet_us"]) == {"fp32", name}


def test_thresholds_are_fitted_to_another_agreement_and_in_another_precision(small_bundle):
    confident = small_bundle.manifest.merge.confident
    assert confident is not None
    assert confident.agreement == AGREEMENT


def test_a_small_bundle_is_served_like_any(small_bundle):
    samples = [one[None] for one in small_bundle.golden().inputs]
    with in_process(small_bundle, GatewayOptions(devices=default_devices()), samples) as served:
        assert len(served.time(range(len(samples)))) == len(samples)


def test_the_precision_is_told_to_who_looks(small_bundle, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", str(small_bundle.path)])
    assert f"FP32 [N, 1, 8, 8], subnets in {small_bundle.manifest.precision}, merged" in capsys.readouterr().out


def test_the_tolerance_and_what_was_found_are_said(small_bundle):
    said = small_bundle.manifest.provenance["precision"]
    assert 0 < said["difference"]["worst"] < said["tolerance"]["worst"]
    assert 0 < said["difference"]["mean"] < said["tolerance"]["mean"]
    assert said["calibration_inputs"] == {"fp16": 0, "int8": 256}[said["name"]]


def test_the_files_are_smaller_and_of_the_precision(small_bundle, digits_bundle):
    name = small_bundle.manifest.provenance["precision"]["name"]
    for worker in range(small_bundle.assignment.n_workers):
        data, before = small_bundle.subnet(worker), digits_bundle.subnet(worker)
        assert len(data) < 0.75 * len(before)
        graph = onnx.load_from_string(data).graph
        kinds = Counter(tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 64)
        wanted = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[name]
        assert kinds[wanted] >= 3
        assert graph.node[-1].op_type == "Sigmoid"  # the activation, in FP32, is the last thing before the scores
    assert small_bundle.reference() == digits_bundle.reference()


def test_input_and_scores_stay_fp32_with_any_batch(small_bundle):
    shape = small_bundle.manifest.input.shape
    for worker, spec in enumerate(small_bundle.manifest.subnets):
        data = small_bundle.subnet(worker)
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
        signature = read_signature(data)
        assert signature.inputs[0].accepts(shape)
        assert signature.outputs[0].accepts((len(spec.classes),))
        ort = session(data)
        for n in (1, 3, 7):
            scores = ort.run(None, {"input": np.zeros((n, *shape), np.float32)})[0]
            assert scores.shape == (n, len(spec.classes))
            assert scores.dtype == np.float32


def test_the_golden_check_holds_where_another_machine_rounds_otherwise(small_bundle):
    golden = small_bundle.golden()
    answer = load(small_bundle).predict_tensor(golden.inputs)
    golden.check(answer.scores, answer.class_id)
    assert len(set(golden.class_id.tolist())) > 3
    for worker in range(small_bundle.assignment.n_workers):
        data, feed = small_bundle.subnet(worker), {"input": golden.inputs}
        as_a_gpu, here = session(data, fused=False).run(None, feed)[0], session(data).run(None, feed)[0]
        np.testing.assert_allclose(as_a_gpu, here, atol=golden.SCORE_TOLERANCE)


def test_quantised_weights_leave_room_for_cpus_that_add_in_sixteen_bits(small_bundle):
    for tensor in onnx.load_from_string(small_bundle.subnet(0)).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            assert np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64


def test_the_monolith_is_there_and_evaluated(small_bundle, digits_run):
    manifest = small_bundle.manifest
    data = monolith(small_bundle)
    assert data is not None
    assert manifest.checksums["monolith.onnx"] == sha256_of(small_bundle.path / "monolith.onnx")
    assert manifest.accuracy["monolith"] > 0.85
    assert manifest.provenance["monolith_size"]["macs"] == digits_run.network("recovered").macs
    with np.load(small_bundle.path / "evaluation.npz") as kept:
        assert (kept["monolith"] == kept["label"]).mean() == manifest.accuracy["monolith"]


def test_a_bundle_without_a_monolith_has_none(digits_bundle):
    assert monolith(digits_bundle) is None
    assert "monolith" not in digits_bundle.manifest.accuracy


@pytest.mark.parametrize(
    ("name", "shape", "head"), [("resnet8", (3, 16, 16), "softmax_others"), ("mlp", (7,), "softmax")]
)
def test_every_family_and_head_is_written_quietly(name, shape, head, capfd):
    torch.manual_seed(0)
    model = models.create(name, 5, shape)
    if head == "softmax_others":
        heads.replace_output(model, "linear", heads.find(head), (3, 1))
    subnet = Subnet(model, heads.find(head)).eval()
    inputs = np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)
    before = list(logging.root.handlers)
    exact = to_onnx(subnet, [InputSpec(shape, "readings")])
    for precision in SMALL:
        data = precisions.find(precision).convert(exact, inputs)
        assert check_parity(subnet, data, inputs, name, precisions.find(precision).tolerance).worst > 0
    assert logging.root.handlers == before
    assert capfd.readouterr() == ("", "")


def test_a_network_of_one_layer_stays_as_it_is():
    subnet = Subnet(torch.nn.Linear(4, 3), heads.find("softmax"))
    inputs, exact = np.ones((2, 4), np.float32), to_onnx(subnet, [InputSpec((4,))])
    for name in SMALL:
        data = precisions.find(name).convert(exact, inputs)
        assert check_parity(subnet, data, inputs, name, precisions.find(name).tolerance).worst < 1e-3


def test_a_precision_that_loses_too_much_is_refused_and_leaves_nothing(table_run, tmp_path, monkeypatch):
    lossy = Precision(precisions.find("int8").convert, Tolerance(worst=1.0, mean=1e-6), calibration=4)
    monkeypatch.setattr("export.precisions.int8.precision", lossy)
    with pytest.raises(ModelError, match=r"subnets/00 in int8 gives scores .* on average, expected at most 1e-06"):
        export(table_run, tmp_path / "bundle", precision="int8", padding=1)
    assert list(tmp_path.iterdir()) == []


def test_another_precision_is_one_line_and_leaves_nothing(table_run, tmp_path):
    with pytest.raises(PluginError, match="nothing is called 'fp8', expected one of fp16, fp32, int8"):
        export(table_run, tmp_path / "bundle", precision="fp8")
    assert list(tmp_path.iterdir()) == []


def test_golden_samples_are_steady_and_of_many_classes():
    nothing = np.zeros(8)
    of_input = Difference(0.0, 0.0, np.array([0, 0.3, 0, 0.1, 0.00001, 0.5, 0.5, 0.5]), nothing)
    of_rounding = Difference(0.0, 0.0, nothing, np.array([0, 0, 0.2, 0, 0, 0.5, 0.5, 0.5]))
    class_id = np.array([0, 1, 1, 0, 0, 2, 3, 4])
    assert choose_golden([of_input, of_rounding], class_id, 3).tolist() == [0, 1, 4]
    assert choose_golden([of_input, of_rounding], class_id, 8).tolist() == [0, 1, 5, 6, 7, 4, 3, 2]


def test_the_command_prints_speed_and_accuracy_of_both_precisions(table_run, tmp_path, capsys):
    command = ["export", str(table_run.path), "--quiet", "--precision", "int8", "--pad-channels", "1", "--monolith"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--out", str(tmp_path / "bundle")])
    said = capsys.readouterr().out
    assert re.search(r"test part right: [\d.]+%, reference [\d.]+%, monolith [\d.]+%\n", said)
    assert re.search(r"largest subnet takes \d+ us in fp32, \d+ us in int8; validation part right: [\d.]+% in", said)
