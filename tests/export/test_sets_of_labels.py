"""Sets of labels from data to a bundle: trained, cut, merged, evaluated and reported; and from ONNX files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score

from export.assemble import export
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.reference import train
from sensai_serve import bundle as make
from sensai_serve import load
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from sensai_serve.report.precision import average_precision

LABELS = ["warm", "wet", "windy"]
DIRECTIONS = np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32) * 2


def examples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of which each label is true where a direction of its own says so, with some noise."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 8)).astype(np.float32)
    return x, (x @ DIRECTIONS + random.normal(size=(n, 3)) > 1).astype(np.int64)


def run_command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "weather.npz"
    (x, y), (x_test, y_test) = examples(600, 0), examples(100, 1)
    np.savez(path, x=x, y=y, x_test=x_test, y_test=y_test, labels=LABELS)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def made(source: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, Bundle]:
    """Weights, a run and a bundle: two copies of each of three labels, and a joint retraining."""
    folder = tmp_path_factory.mktemp("made")
    weights = folder / "w.safetensors"
    trained = train(source, "mlp", task="multilabel", epochs=8, batch=32, rate=0.05, threads=1)
    save_file(trained.model.state_dict(), weights)
    recipe = Recipe(source, "mlp", task="multilabel", assignment="cyclic", redundancy=2, merge="auto", amount=0.6,
                    batch=32, recover_images=1000, images=200, joint_images=200, profile_images=32,
                    reconstruct_images=64)  # fmt: skip
    plan = make_plan(recipe, weights, threads=1)
    assert str(plan.check).startswith("reference: F1 ")
    run = prune_reference(plan, folder / "run")
    return weights, run, export(run, folder / "bundle", padding=1)


def test_the_whole_way(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run, bundle = made
    manifest = bundle.manifest
    assert (manifest.task, len(manifest.merge.thresholds), manifest.merge.confident) == ("multilabel", 3, None)
    accuracy = manifest.accuracy
    assert accuracy["mean_average_precision"] > 0.8
    assert accuracy["f1_micro"] > 0.7
    assert accuracy["f1_micro"] > accuracy["reference_f1_micro"] - 0.1
    classifier, golden = load(bundle), bundle.golden()
    golden.check_answer(classifier.predict_tensor(golden.inputs))
    x, y = examples(50, 2)
    found = np.array([[label in {one.label for one in classifier.predict_labels(row).labels} for label in LABELS]
                      for row in x])  # fmt: skip
    assert (found == y).mean() > 0.8
    run_command("inspect", str(bundle.path))
    shown = capsys.readouterr().out
    assert "mean average precision" in shown
    assert "answers are sets of labels" in shown
    for arguments in ([str(run.path), "--bundle", str(bundle.path)], [str(bundle.path)]):
        page = tmp_path / "page.html"
        run_command("report", *arguments, "--out", str(page), "--quiet")
        text = page.read_text()
        assert "F1 over all labels" in text
        assert text.count("Average precision per label") >= 2  # a picture and a table
        precision = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["average_precision"]
        assert np.mean(precision["merged"]) == pytest.approx(accuracy["mean_average_precision"])
        assert np.mean(precision["reference"]) == pytest.approx(accuracy["reference_mean_average_precision"])
    run_command("report", str(run.path), "--out", str(page), "--quiet")  # of the validation part
    assert "Average precision per label" in page.read_text()


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_average_precision_is_scikit_learns(seed: int, n: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    truth, scores = random.integers(0, 2, (n, 3)), random.integers(0, levels, (n, 3)) / np.float32(levels)
    found = average_precision(truth, scores)
    for label in range(3):
        if truth[:, label].any():
            assert found[label] == pytest.approx(average_precision_score(truth[:, label], scores[:, label]))
        else:
            assert np.isnan(found[label])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--task", "multilabel", "--head", "softmax_others"],
            "says which one of several classes it is, expected sigm",
        ),
        ([], "examples have several labels or none, expected one each, or --task multilabel"),
        (["--task", "several"], "task"),
    ],
)
def test_what_does_not_fit_is_one_line(made, source: str, capsys, options: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prune", "--data", source, "--model", "mlp", "--weights", str(made[0]), "--dry-run", *options])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error


def network(noise: float, seed: int, activation: str | None = "Sigmoid") -> onnx.ModelProto:
    """A file that somebody has: a linear layer from 8 numbers to 3."""
    weight = DIRECTIONS + np.random.default_rng(seed).normal(size=DIRECTIONS.shape).astype(np.float32) * noise
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.full(3, -1, np.float32), "b")]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["logits" if activation else "y"])]
    if activation:
        nodes.append(helper.make_node(activation, ["logits"], ["y"]))
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 8), ("y", 3))]
    graph = helper.make_graph(nodes, "given", shapes[:1], shapes[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_files_that_somebody_has_become_such_a_bundle() -> None:
    x, y = examples(300, 4)
    files = [network(0.3, seed, activation) for seed, activation in ((1, "Sigmoid"), (2, None), (3, "Sigmoid"))]
    made = make(files, LABELS, data=(x, y), task="multilabel", reference=network(0.0, 0))
    manifest = made.manifest
    assert (manifest.task, len(manifest.merge.thresholds)) == ("multilabel", 3)
    assert manifest.accuracy["mean_average_precision"] > 0.85
    assert manifest.accuracy["f1_one_lost"]["worst"] > 0.7
    assert manifest.accuracy["reference_f1_micro"] > 0.7
    assert {one.label for one in made.predict_labels(x[0], normalised=True).labels} <= set(LABELS)
    alone = make([network(0.0, 0)], LABELS, task="multilabel")
    logits = x[:20] @ DIRECTIONS - 1
    for row, expected in zip(x, logits > 0, strict=False):
        assert {one.class_id for one in alone.predict_labels(row).labels} == set(np.flatnonzero(expected))


def test_files_for_one_label_of_several_are_refused() -> None:
    with pytest.raises(InputError, match="gives scores that add up to 1, one class of which is right"):
        make([network(0.0, 0, "Softmax")], LABELS, task="multilabel")
    with pytest.raises(InputError, match="a cascade asks which one class is right"):
        make([network(0.0, 0)] * 2, LABELS, task="multilabel", cascade=True)
    with pytest.raises(InputError, match="every example has exactly one label"):
        make([network(0.0, 0)], LABELS, task="multilabel", data=(examples(8, 0)[0], np.arange(8) % 3))


def test_the_manifest_says_what_is_wrong(made, tmp_path: Path) -> None:
    raw = json.loads((made[2].path / "manifest.json").read_text())
    for change, said in (
        ({"task": "some"}, "task is 'some', expected one of single, multilabel"),
        ({"task": "single"}, "merge.thresholds is given, expected none"),
        ({"merge": raw["merge"] | {"thresholds": [0.5]}}, "merge.thresholds are 1, expected one for each of 3 labels"),
        (
            {"merge": raw["merge"] | {"thresholds": [0.5, 0, 1]}},
            "merge.thresholds holds 0.0, expected numbers between",
        ),
        ({"merge": raw["merge"] | {"treshold": 0.5}}, "merge.treshold is unknown"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(raw | change))
        with pytest.raises(InputError, match=said):
            Bundle.open(tmp_path)
