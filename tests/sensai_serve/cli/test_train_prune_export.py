"""The commands train, prune and export as a user types them: what they print, and one line where something is wrong."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from benchmarks.subjects.networks import monolith
from pruning import data, models
from sensai_serve.bundles import Bundle


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("w") / "wine.safetensors"
    save_file(models.create("mlp", 3, (13,)).state_dict(), path)
    return path


TIED = """
from torch import nn


class Tied(nn.Module):
    def __init__(self, n_classes, input_shape):
        super().__init__()
        self.first, self.second = nn.Linear(13, 13), nn.Linear(13, 13)
        self.second.weight = self.first.weight
        self.last = nn.Linear(13, n_classes)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu())
"""


def test_from_nothing_to_a_bundle(sensai, tmp_path):
    code, out, err = sensai(
        *("train", "--data", "wine", "--model", "mlp", "--epochs", 20, "--batch", 32, "--rate", 0.05),
        *("--out", tmp_path / "wine.safetensors", "--threads", 1),
    )
    assert code == 0, err
    assert "of the validation part right" in out
    assert "train: done in" in err
    prune = ("prune", "--data", "wine", "--model", "mlp", "--weights", tmp_path / "wine.safetensors")
    prune += ("--assignment", "cyclic", "--groups", 2, "--uneven", "--redundancy", 2)
    prune += ("--recover-images", 2000, "--images", 500, "--batch", 32)
    code, out, err = sensai(*prune, "--out", tmp_path / "run")
    assert code == 0, err
    assert "2 subnets; validation part right" in out
    assert re.search(r"cut: each subnet was to keep 25.0% of the reference's MACs and keeps \d+\.\d%", out)
    assert "recover: done in" in err
    assert "worker 1: done in" in err
    export = ("export", tmp_path / "run", "--out", tmp_path / "bundle", "--name", "wines", "--pad-channels", 1)
    code, out, err = sensai(*export, "--quiet")
    assert code == 0, err
    assert err == ""
    assert "test part right" in out
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.verify()
    assert bundle.manifest.name == "wines"
    assert bundle.assignment.redundancy == 2


def test_weights_that_layers_share_are_written_and_a_place_that_takes_none_is_found_before_the_training(
    sensai, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("tied.py").write_text(TIED)
    train = ("train", "--data", "wine", "--model", "tied:Tied", "--epochs", 1, "--threads", 1)
    assert sensai(*train, "--out", "tied.safetensors")[0] == 0
    code, _, err = sensai(*train, "--out", "tied.safetensors/w.safetensors")
    assert code == 2
    assert "train: done" not in err
    assert sensai("prune", *train[1:5], "--weights", "tied.safetensors", "--dry-run", "--quiet")[0] == 0
    code, _, err = sensai(*train, "--out", "other.safetensors", "--seed", 10**20)
    assert code == 2
    assert f"seed is {10**20}, expected 0 to 4294967295" in err


def test_data_may_move_between_the_commands(sensai, weights, tmp_path, monkeypatch):
    wine = data.load("wine")
    monkeypatch.chdir(tmp_path)
    np.savez("wine.npz", x=wine.x, y=wine.y, x_test=wine.x_test, y_test=wine.y_test)
    prune = ("prune", "--model", "mlp", "--weights", weights, "--assignment", "grouped", "--groups", 1)
    prune += ("--recover-images", 0, "--images", 64, "--out", "run")
    assert sensai(*prune, "--data", "npz:wine.npz")[0] == 0
    Path("there").mkdir()
    Path("wine.npz").rename("there/wine.npz")
    monkeypatch.chdir("there")
    code, _, err = sensai("export", "../run", "--out", "../bundle")
    assert code == 2
    assert "wine.npz' is not there" in err
    export = ("export", "../run", "--out", "../bundle", "--pad-channels", 1, "--monolith")
    code, out, err = sensai(*export, "--data", "npz:wine.npz")
    assert code == 0, err
    assert "no monolith: the run has no network for all classes" in out
    assert monolith(Bundle.open("../bundle")) is None
    assert str(tmp_path) not in Path("../bundle/manifest.json").read_text()
    assert sensai(*prune[:-1], "../run", "--data", "npz:wine.npz")[0] == 0  # the same data elsewhere is the same recipe
    code, _, err = sensai("export", "../run", "--out", "../other", "--data", "breast_cancer")
    assert code == 2
    assert "not the data that" in err


def test_a_dry_run_writes_nothing(sensai, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prune = ("prune", "--data", "wine", "--model", "mlp", "--weights", weights, "--dry-run")
    code, out, _ = sensai(*prune, "--assignment", "cyclic", "--redundancy", 2)
    assert code == 0
    assert "class_0" in out
    assert "losing 2" in out
    assert re.match(r"reference: [\d.]+% of \d+ validation examples right", out)
    assert "time: about" in out
    assert re.search(r"disk: about 0\.\d MB", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data": "cifar10:nowhere"}, "'nowhere' is not there"),
        ({"--data": "mnist"}, "nothing is called 'mnist'"),
        ({"--data": "folder:empty"}, "has no folders"),
        ({"--data": "npz:labels.npz"}, "label 2, expected 0 to 1"),
        ({"--data": "npz:hole.npz"}, "class '1' has no training examples"),
        ({"--data": "npz:ten.npz"}, "does not fit the model"),
        ({"--model": "transformer"}, "no network is called 'transformer'"),
        ({"--model": "resnet20"}, "no network is called 'resnet20'"),
        ({"--weights": "nowhere.th"}, "'nowhere.th' is not there"),
        ({"--assignment": "cyclic", "--redundancy": "4"}, "redundancy is 4, expected 1 to"),
        ({"--assignment": "cyclic", "--offsets": "0,3"}, "not distinct"),
        ({"--assignment": "cyclic", "--offsets": "0,x"}, "--offsets is '0,x'"),
        ({"--assignment": "grouped", "--groups": "9"}, "groups is 9"),
        ({"--threshold": "9.0"}, "layer 1 would lose all 64 channels"),
        ({"--macs": "0.5", "--channels": "0.5"}, "--macs and --channels: expected one of them"),
        ({"--out": "full"}, "full is not empty"),
        ({"--out": "file"}, "file is a file"),
        ({"--device": "cuda:7"}, "--device cuda:7"),
        ({"--device": "toaster"}, "--device toaster"),
        ({"--criterion": "magic"}, "nothing is called 'magic'"),
    ],
)
def test_a_wrong_prune_is_one_line_and_leaves_nothing(sensai, weights, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/notes").touch()
    Path("file").touch()
    np.savez("labels.npz", x=np.ones((6, 13)), y=[0, 0, 1, 1, 2, 2], labels=["a", "b"])
    np.savez("hole.npz", x=np.ones((6, 13)), y=[0, 0, 0, 2, 2, 2])
    np.savez("ten.npz", x=np.random.default_rng(0).normal(size=(40, 13)), y=np.arange(40) % 10)
    before = sorted(tmp_path.rglob("*"))
    options = {"--data": "wine", "--model": "mlp", "--weights": str(weights), "--out": "run", "--recover-images": "0"}
    code, out, err = sensai("prune", "--quiet", *(part for pair in (options | changes).items() for part in pair))
    assert code == 2
    assert all(line.startswith("reference: ") for line in out.splitlines())
    assert err.count("\n") == 1
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "--data", "wine", "--model", "mlp", "--out", "there.safetensors"), "expected a new file"),
        (("train", "--data", "wine", "--model", "mlp", "--out", "w.pt"), "ends in .safetensors"),
        (("train", "--data", "wine", "--model", "cnn", "--out", "w.safetensors"), "no network is called 'cnn'"),
        (("prune", "--data", "wine", "--model", "mlp", "--weights", "w"), "--out is missing"),
        (("export", "nowhere", "--out", "bundle"), "nowhere is no run"),
        (("export", ".", "--out", "full"), "full is not empty"),
    ],
)
def test_other_wrong_commands(sensai, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").touch()
    Path("full").mkdir()
    Path("full/notes").touch()
    before = sorted(tmp_path.rglob("*"))
    code, _, err = sensai(*args)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_export_replaces_its_earlier_bundle_only_when_told_to_and_nothing_else(sensai, table_run, tmp_path):
    out = tmp_path / "bundle"
    export = ("export", table_run.path, "--pad-channels", 1, "--quiet", "--out")
    assert sensai(*export, out, "--name", "first")[0] == 0
    code, _, err = sensai(*export, out)
    assert (code, err.count("\n")) == (2, 1)
    assert "or --force to replace the bundle" in err
    assert sensai(*export, out, "--precision", "none:such", "--force")[0] == 2
    assert Bundle.open(out).manifest.name == "first"
    code, _, err = sensai(*export, out, "--name", "second", "--force")
    assert code == 0, err
    replaced = Bundle.open(out)
    replaced.verify()
    assert replaced.manifest.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("cat")
    code, _, err = sensai(*export, photos, "--force")
    assert code == 2
    assert "only a bundle is replaced" in err
    assert (photos / "cat.jpg").read_text() == "cat"


def test_ctrl_c_says_how_to_go_on(weights, tmp_path):
    prune = ("prune", "--data", "wine", "--model", "mlp", "--weights", str(weights), "--images", "100000000")
    command = [sys.executable, "-m", "sensai_serve", *prune, "--out", str(tmp_path / "run"), "--quiet"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a command in the background of a shell ignores it
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        try:
            assert "validation" in process.stdout.readline()  # the work begins after this line
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "sensai: interrupted; the same command goes on where it was, to the same subnets"
