"""Bundles made of runs: they verify, answer as torch does, keep what they answered, and say nothing they should not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import sensai_serve.local
from export.assemble import export
from export.parity import check_parity
from export.to_onnx import to_onnx
from pruning import heads, models
from pruning.heads import Subnet, replace_output
from pruning.run import Run
from sensai_serve.bundles import GOLDEN, Bundle, sha256_of
from sensai_serve.errors import InputError, ModelError, OutputExistsError
from sensai_serve.evaluation import EVALUATION
from sensai_serve.onnx_signature import read_signature
from sensai_serve.preprocess import InputSpec, normalise


def test_the_bundle_verifies_and_is_as_good_as_the_reference(digits_bundle):
    digits_bundle.verify()
    accuracy = digits_bundle.manifest.accuracy
    assert accuracy["test_inputs"] == 359
    assert accuracy["reference"] > 0.9
    assert accuracy["test"] > accuracy["reference"] - 0.03
    assert digits_bundle.manifest.name == "digits"
    assert digits_bundle.assignment.n_workers == 5
    assert digits_bundle.assignment.redundancy == 3


def test_every_label_that_was_kept_is_the_one_the_bundle_gives(digits_bundle, digits_run):
    dataset = digits_run.dataset
    with np.load(digits_bundle.path / EVALUATION) as kept:
        class_id, label = kept["class_id"], kept["label"]
    np.testing.assert_array_equal(label, dataset.y_test)
    classifier = sensai_serve.local.load(digits_bundle.path)
    for i in range(0, len(label), 7):
        assert classifier.predict(dataset.x_test[i]).class_id == class_id[i]
    assert (class_id == label).mean() == digits_bundle.manifest.accuracy["test"]


def test_a_bundle_scores_as_the_run_s_torch_networks_do(digits_bundle, digits_run):
    inputs = normalise(digits_run.dataset.x_test[:20], digits_run.spec)
    by_onnx = sensai_serve.local.load(digits_bundle.path).scores(inputs)
    with torch.no_grad():
        for worker, scores in enumerate(by_onnx):
            expected = digits_run.load(digits_run.folder(worker))(torch.from_numpy(inputs))
            np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_subnets_are_smaller_than_the_reference_and_say_so(digits_bundle):
    reference = digits_bundle.manifest.provenance["reference"]
    for spec in digits_bundle.manifest.subnets:
        assert 0 < spec.macs <= 0.25 * reference["macs"]
        assert 0 < spec.parameters < 0.5 * reference["parameters"]


def test_a_bundle_says_what_each_subnet_takes_in_memory(digits_bundle):
    for subnet in digits_bundle.manifest.subnets:
        assert subnet.memory is not None
        assert subnet.memory.weights > 4 * subnet.parameters  # FP32, and the graph


def test_golden_samples_are_the_bundle_s_answers(digits_bundle):
    golden = digits_bundle.golden()
    answer = sensai_serve.local.load(digits_bundle.path).predict_tensor(golden.inputs)
    golden.check(answer.scores, answer.class_id)


def test_no_file_of_a_bundle_tells_where_it_was_made(digits_bundle, digits_run, digits_weights):
    home, root = str(Path.home()).encode(), str(Path(__file__).parents[2]).encode()
    for path in digits_bundle.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (
                str(digits_run.path).encode(),
                str(digits_weights).encode(),
                root,
                b".py",
                b'File "',
                home + b"/",
            ):
                assert secret not in content, (path, secret)
    for path in digits_bundle.path.rglob("*.onnx"):
        graph = onnx.load(path).graph
        assert not any(node.doc_string or node.metadata_props for node in graph.node)


def test_an_exported_run_s_files_are_checked_by_their_digests(digits_bundle):
    checksums = digits_bundle.manifest.checksums
    for name in (GOLDEN, EVALUATION, "reference.onnx"):
        assert checksums[name] == sha256_of(digits_bundle.path / name)


def test_a_table_of_readings_end_to_end_and_quietly(table_run, tmp_path, capfd):
    bundle = export(table_run, tmp_path / "bundle", name="cells")
    assert capfd.readouterr() == ("", "")
    bundle.verify()
    assert bundle.manifest.name == "cells"
    assert bundle.manifest.input.image is None
    assert bundle.manifest.accuracy["test"] > 0.85
    readings = table_run.dataset.x_test[0]
    assert sensai_serve.local.load(bundle.path).predict(readings).label in ("malignant", "benign")


def test_export_without_evaluation_looks_at_no_test_input(table_bundle):
    table_bundle.verify()
    assert table_bundle.manifest.accuracy == {}
    assert not (table_bundle.path / EVALUATION).exists()


def test_thresholds_are_fitted_on_the_validation_part(digits_bundle, digits_run):
    confident = digits_bundle.manifest.merge.confident
    assert confident is not None
    truth = digits_run.dataset.y[digits_run.split[1]]
    assert (confident.inputs, confident.agreement, len(confident.thresholds)) == (len(truth), 0.999, 2)
    assert sum(confident.stopped) > 0.5
    classifier, x = sensai_serve.load(digits_bundle), digits_run.dataset.x[digits_run.split[1]]
    same = early = 0
    for one in x:
        tensor = normalise(one[None], digits_bundle.manifest.input)
        sure, whole = classifier.predict_tensor(tensor, wait="confident"), classifier.predict_tensor(tensor)
        early += sure.decided_early
        same += int(sure.class_id[0] == whole.class_id[0])
    assert early == pytest.approx(sum(confident.stopped) * len(x), abs=1)  # torch and ONNX differ by a millionth
    assert len(x) - same <= 1


def test_an_unfinished_run_is_refused_and_nothing_is_left(table_run, tmp_path):
    shutil.copytree(table_run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "subnets" / "01")
    with pytest.raises(InputError, match="subnets/01 is not finished"):
        export(Run.open(tmp_path / "run"), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_damaged_weights_are_refused_and_nothing_is_left(table_run, tmp_path):
    shutil.copytree(table_run.path, tmp_path / "run")
    (tmp_path / "run" / "subnets" / "00" / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"weights\.safetensors cannot be read"):
        export(Run.open(tmp_path / "run"), tmp_path / "bundle", padding=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_bundle_is_not_written_over_something(table_run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not empty"):
        export(table_run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "shape", "head"),
    [
        ("resnet8", (3, 16, 16), "sigmoid"),
        ("vgg11", (3, 32, 32), "softmax_others"),
        ("cnn", (1, 8, 8), "softmax_others"),
        ("mlp", (7,), "sigmoid"),
    ],
)
def test_every_family_and_head_agrees_with_torch_for_any_batch(name, shape, head):
    torch.manual_seed(0)
    model = models.create(name, 5, shape)
    output = {"mlp": "5", "vgg11": "classifier"}.get(name, "linear")
    replace_output(model, output, heads.find(head), (3, 1))
    subnet = Subnet(model, heads.find(head)).eval()
    data = to_onnx(subnet, [InputSpec(shape, "readings")])
    signature = read_signature(data)
    assert signature.inputs[0].name == "readings"
    assert signature.inputs[0].accepts(shape)
    assert signature.outputs[0].accepts((2,))
    assert not signature.external_data
    inputs = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    assert check_parity(subnet, data, inputs, name).worst < 1e-4


def test_a_file_that_disagrees_with_torch_is_refused():
    model = Subnet(models.create("mlp", 3, (4,)), heads.find("softmax"))
    other = Subnet(models.create("mlp", 3, (4,)), heads.find("softmax"))
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with pytest.raises(ModelError, match=r"net gives scores .* away from torch's, expected at most 0.0001"):
        check_parity(other, to_onnx(model, [InputSpec((4,))]), inputs, "net")


class Endless(torch.nn.Module):
    """Control flow that depends on the values cannot be exported."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_onnx_cannot_express_is_one_line(capfd):
    with pytest.raises(ModelError, match="ONNX export cannot express") as caught:
        to_onnx(Endless(), [InputSpec((3,))])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_opening_what_was_made(digits_bundle):
    assert Bundle.open(digits_bundle.path).manifest == digits_bundle.manifest
