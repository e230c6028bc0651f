"""``sensai report``: the page needs nothing else, and what it shows is what the run's files say."""

from __future__ import annotations

import json
import re
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sklearn.metrics import confusion_matrix

from pruning import models
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.report import facts
from pruning.report.copies import compare
from sensai_serve.cli.main import main
from sensai_serve.evaluation import EVALUATION
from sensai_serve.merge import MergePlan, merge
from sensai_serve.preprocess import normalise


@pytest.fixture
def report(capsys):
    def run(*args: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["report", "--quiet", *map(str, args)])
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_what_the_runs_files_say(report, digits_run, tmp_path):
    code, err = report(digits_run.path, "--out", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    data = data_of(page)
    dataset, (_, validation) = digits_run.dataset, digits_run.split
    truth, plan = dataset.y[validation], MergePlan(digits_run.assignment)
    scores = [np.load(digits_run.path / f"subnets/0{w}/validation.npy") for w in range(5)]
    merged = merge(plan, scores).class_id
    with torch.inference_mode():
        inputs = torch.from_numpy(normalise(dataset.x[validation], dataset.spec))
        reference = digits_run.load("reference").network(inputs).argmax(1).numpy()

    assert data["part"] == "validation part"
    assert data["accuracy"] == {"merged": (merged == truth).mean(), "reference": (reference == truth).mean()}
    assert data["confusion"]["merged"] == confusion_matrix(truth, merged, labels=range(10)).tolist()
    assert data["confusion"]["reference"] == confusion_matrix(truth, reference, labels=range(10)).tolist()
    two = [
        (merge(plan, [None if w in lost else s for w, s in enumerate(scores)]).class_id == truth).mean()
        for lost in combinations(range(5), 2)
    ]
    at_two = data["lost_workers"][2]
    assert (at_two["lost"], at_two["sets"], at_two["every"]) == (2, 10, True)
    np.testing.assert_allclose([at_two["worst"], at_two["best"], at_two["mean"]], [min(two), max(two), np.mean(two)])

    kept = data["kept_channels"]
    for worker, counts in enumerate(kept["by_worker"]):
        weights = load_file(digits_run.path / f"subnets/0{worker}/weights.safetensors")
        assert counts == [len(weights[f"{layer}.weight"]) for layer in kept["layers"]]
    macs = [digits_run.network(name).macs for name in (*map(digits_run.folder, range(5)), "reference")]
    assert data["cut"] == {"target": "macs", "asked": 0.25, "shares": [own / macs[-1] for own in macs[:-1]]}
    assert "each subnet was to keep 25.0% of the reference" in page
    assert data["symbols"] == [list(symbol) for symbol in digits_run.assignment.symbols]

    assert not re.search(r'(?:src|srcset|href)="(?!data:)', page)
    assert page.count("<figure") == page.count('prefers-color-scheme: dark)" srcset') == 11
    votes = [each >= plan.threshold for each in scores]
    differ, together = (np.array(data["copies"][name], float) for name in ("disagreement", "error_correlation"))
    for made, expected in zip((differ, together), compare(digits_run.assignment.rows, votes, truth), strict=True):
        np.testing.assert_allclose(made, expected, atol=1e-6)
    assert "<title>cnn for digits: 5 workers, cyclic</title>" in page


def test_layers_of_removed_blocks_have_no_channels(tmp_path):
    save_file(models.create("resnet14", 10, (1, 8, 8)).state_dict(), tmp_path / "w.safetensors")
    recipe = Recipe("digits", "resnet14", assignment="grouped", groups=2, grouping="random", target="channels",
                    amount=0.5, depth=0.5, recover_images=0, images=64, reconstruct_images=0,
                    profile_images=4)  # fmt: skip
    run = prune_reference(make_plan(recipe, tmp_path / "w.safetensors"), tmp_path / "run")
    kept = facts.kept_channels(run)
    assert (kept.counts == 0).any()
    for worker in range(2):
        weights = load_file(run.path / f"subnets/0{worker}/weights.safetensors")
        left = [len(weights.get(f"{layer}.weight", ())) for layer in kept.layers]
        assert kept.counts[:, worker].tolist() == left


def test_overlap_is_intersection_over_union():
    first = np.asarray([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
    second = np.asarray([[1, 0], [0, 1], [1, 0]], bool)
    kept = facts.Kept(("a", "b"), (first, second))
    np.testing.assert_allclose(kept.overlap, [[1, 2 / 4, 2 / 4], [2 / 4, 1, 1 / 5], [2 / 4, 1 / 5, 1]])


def test_of_a_bundle_the_test_answers_that_it_kept(report, digits_run, digits_bundle, tmp_path):
    code, err = report(digits_run.path, "--bundle", digits_bundle.path, "--out", tmp_path / "page.html")
    assert code == 0, err
    data = data_of((tmp_path / "page.html").read_text())
    assert data["part"] == "test part"
    assert data["accuracy"]["merged"] == digits_bundle.manifest.accuracy["test"]
    assert np.sum(data["confusion"]["reference"]) == len(digits_run.dataset.y_test)
    latency = data["latency_us"]
    assert latency == {
        "reference": digits_bundle.manifest.provenance["latency_us"]["reference"],
        "workers": digits_bundle.manifest.provenance["latency_us"]["subnets"],
    }
    assert len(latency["workers"]) == 5
    assert min(latency["workers"]) > 0


def test_a_wrong_report_is_one_line_and_leaves_nothing(report, digits_run, digits_bundle, table_run, tmp_path):
    page = tmp_path / "page.html"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(digits_run.path, unfinished)
    shutil.rmtree(unfinished / "subnets/03")
    damaged = tmp_path / "damaged"
    shutil.copytree(digits_run.path, damaged)
    np.save(damaged / "subnets/01/validation.npy", np.zeros((3, 1), np.float32))
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(digits_bundle.path, unlabelled)
    (unlabelled / EVALUATION).unlink()
    manifest = json.loads((unlabelled / "manifest.json").read_text())
    del manifest["checksums"][EVALUATION]
    (unlabelled / "manifest.json").write_text(json.dumps(manifest | {"accuracy": {}}))
    for args, message in (
        ((digits_run.path, "--out", tmp_path / "page.txt"), "expected a file that ends in .html"),
        ((tmp_path, "--out", page), "is no run"),
        ((unfinished, "--out", page), "subnets/03 is not finished"),
        ((damaged, "--out", page), "validation.npy has shape [3, 1]"),
        ((digits_run.path, "--data", "wine", "--out", page), "not the data that"),
        ((digits_run.path, "--bundle", tmp_path, "--out", page), "is not a bundle"),
        ((digits_run.path, "--bundle", unlabelled, "--out", page), "has no answers to the test part"),
        ((table_run.path, "--bundle", digits_bundle.path, "--out", page), "is not a bundle of"),
    ):
        code, err = report(*args)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    assert not page.exists()
