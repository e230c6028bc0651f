"""``--labels reference``: data without labels is learnt from the reference's answers, and figures are of agreement."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from pruning import data
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.loop import infer
from pruning.training.reference import train
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import app
from sensai_serve.errors import DataError
from sensai_serve.evaluation import kept_labels


@pytest.fixture
def live(tmp_path, monkeypatch):
    """Wines nobody has labelled, and a network that knows them."""
    monkeypatch.chdir(tmp_path)
    trained = train("wine", "mlp", epochs=20, rate=0.05, threads=1)
    save_file(trained.model.state_dict(), "w.safetensors")
    wines = trained.dataset
    np.savez("live.npz", x=wines.x, labels=wines.labels)
    np.savez("unnamed.npz", x=wines.x)
    (tmp_path / "names.txt").write_text("\n".join(wines.labels))
    return trained


def typed(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_workers_learn_the_answers_and_the_bundle_says_how_often_they_agree(live, tmp_path):
    run = ["--out", "run", "--assignment", "full", "--redundancy", "1", "--recover-images", "2000", "--images", "500"]
    said = typed("prune", "--data", "npz:live.npz", "--model", "mlp", "--weights", "w.safetensors",
                 "--labels", "reference", "--macs", "0.5", "--threads", "1", "--quiet", *run)  # fmt: skip
    assert "reference: its own answers are the labels" in said
    assert "the reference's answer for" in said
    opened = Run.open(tmp_path / "run")
    answers = infer(live.model, opened.dataset, opened.dataset.x).argmax(axis=1)
    np.testing.assert_array_equal(opened.dataset.y, answers)
    said = typed("export", "run", "--out", "bundle", "--quiet")
    bundle = Bundle.open(tmp_path / "bundle")
    accuracy, kept = bundle.manifest.accuracy, kept_labels(bundle)
    assert kept is not None
    assert accuracy["agreement"] == (kept["class_id"] == kept["reference"]).mean() > 0.6
    assert "test" not in accuracy
    assert f"the reference's answer for {accuracy['agreement']:.2%} of the test part" in said
    assert "answered as the network before pruning does" in typed("inspect", "bundle")
    for made in (["run", "--bundle", "bundle"], ["bundle"]):
        typed("report", *made, "--out", "page.html", "--quiet")
        page = (tmp_path / "page.html").read_text()
        assert '"agreement": {' in page
        assert "answered as the reference answers them" in page
        for word in ("Accuracy per class", "true class", "mistakes", ">right", "accuracy against"):
            assert word not in page, word


@pytest.mark.parametrize(
    ("source", "labels", "line"),
    [
        ("npz:live.npz", "data", r"y is missing, expected labels \(or --labels reference"),
        ("npz:unnamed.npz", "reference", r"nothing names the classes, expected an array labels, or \?labels=FILE"),
    ],
)
@pytest.mark.usefixtures("live")
def test_what_is_missing_is_said(source, labels, line):
    with pytest.raises(DataError, match=line):
        make_plan(Recipe(source, "mlp", labels=labels), "w.safetensors", threads=1)


@pytest.mark.usefixtures("live")
def test_names_may_come_from_a_file_and_every_class_has_to_be_answered():
    dataset = data.load("npz:unnamed.npz?labels=names.txt", unlabelled=True)
    assert (dataset.labels, dataset.labelled) == (("class_0", "class_1", "class_2"), False)
    assert len(dataset.x) == 114
    with pytest.raises(DataError, match="the reference answers none of 114 training examples with 'class_2', expected"):
        dataset.answered(np.arange(114) % 2, np.zeros(len(dataset.x_test), np.int64))
