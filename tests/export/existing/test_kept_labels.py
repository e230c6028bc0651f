"""What the labels that a bundle of existing files keeps are good for: ``sensai report`` and ``sensai bench replay``."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

import sensai_serve
from benchmarks.subjects.inputs import labelled_from_arrays
from benchmarks.suites import replay
from sensai_serve.cli.main import main
from sensai_serve.evaluation import EVALUATION, kept_labels

LABELS = ("cat", "dog", "owl")


@pytest.fixture
def members(network):
    """Three networks, the first of which is right most often; and labelled inputs."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3))
    x = random.normal(size=(150, 4)).astype(np.float32)
    y = (x @ weight + random.gumbel(size=(150, 3)) * 0.3).argmax(axis=1)
    noise = (0.1, 0.7, 0.7)
    paths = [network(f"m{at}", weight=weight + random.normal(size=weight.shape) * by) for at, by in enumerate(noise)]
    return paths, x, y


def report(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_page_of_an_ensemble(members, tmp_path, capsys) -> None:
    paths, x, y = members
    bundle = sensai_serve.bundle(paths, LABELS, data=(x, y), mean=0, std=1).save(tmp_path / "bundle")
    code, _, err = report(capsys, bundle.path, "--out", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    kept = kept_labels(bundle)
    assert kept is not None
    assert data["confusion"] == confusion_matrix(y, kept["class_id"]).tolist()
    alone = [(x @ weights(path)).argmax(axis=1) for path in paths]
    np.testing.assert_array_equal(kept["files"], alone)
    assert data["files"] == pytest.approx([(given == y).mean() for given in alone])
    assert page.count("<figure") == 4
    assert "best file alone, m0.onnx" in page
    assert f"{bundle.manifest.accuracy['two_lost']['worst']:.2%}" in page


def weights(path) -> np.ndarray:
    """The matrix of a network that the fixture `network` wrote."""
    import onnx
    from onnx import numpy_helper

    return numpy_helper.to_array(onnx.load(path).graph.initializer[0])


def test_a_page_of_a_cascade_and_of_replicas(members, tmp_path, capsys) -> None:
    paths, x, y = members
    cascade = sensai_serve.bundle(paths[1:], LABELS, data=(x, y), cascade=True, loss=5.0, mean=0, std=1)
    replicas = sensai_serve.bundle(paths[:1], LABELS, data=(x, y), replicas=3, mean=0, std=1)
    for made, name, figures, said in ((cascade, "c", 4, "asked in turn"), (replicas, "r", 1, "0, 1, 2")):
        made.save(tmp_path / name)
        assert report(capsys, tmp_path / name, "--out", tmp_path / f"{name}.html")[0] == 0
        page = (tmp_path / f"{name}.html").read_text()
        assert page.count("<figure") == figures
        assert said in page


def test_a_bundle_that_cannot_be_drawn(members, tmp_path, capsys) -> None:
    paths, x, y = members
    unlabelled = sensai_serve.bundle(paths, LABELS).save(tmp_path / "unlabelled").path
    labelled = sensai_serve.bundle(paths, LABELS, data=(x, y), mean=0, std=1).save(tmp_path / "labelled").path
    code, _, err = report(capsys, unlabelled, "--out", tmp_path / "page.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "keeps no labels to draw, expected a bundle that was made with labelled data" in err
    code, _, err = report(capsys, labelled, "--out", tmp_path / "page.html", "--data", "digits")
    assert (code, err.count("\n")) == (2, 1)
    (labelled / EVALUATION).write_bytes(b"no archive")
    assert report(capsys, labelled, "--out", tmp_path / "page.html")[0] == 2
    assert not (tmp_path / "page.html").exists()


def test_a_served_cascade_is_replayed(members, tmp_path) -> None:
    paths, x, y = members
    made = sensai_serve.bundle(paths, LABELS, data=(x, y), cascade=True, loss=5.0, mean=0, std=1)
    bundle = made.save(tmp_path / "bundle")
    kept = kept_labels(bundle)
    assert kept is not None
    test = labelled_from_arrays("data", {"x": x, "y": y}, bundle.manifest.input, 3)
    done = replay.replay(bundle, test)
    assert (done.wait, done.different) == ("confident", 0)
    assert done.stopped_wrong == np.sum((kept["cascade"] != kept["class_id"]) & ~done.exact)
    assert done.accuracy == pytest.approx((kept["cascade"] == y).mean(), abs=0.01)  # scores differ in the last bits
    assert done.copies.mean() == pytest.approx(kept["asked"].mean(), abs=0.02)
    results = replay.report(done, "lean").results
    assert results["wait"] == "confident"
    assert results["copies"] < 3
