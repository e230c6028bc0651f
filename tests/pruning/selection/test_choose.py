"""The criterion that a recipe names decides which channels stay, one of a user's own too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pruning import models
from pruning.run import Run
from sensai_serve.cli.main import main

OWN = """
import numpy as np

def importance(evidence, thresholds):
    (first,) = [weights for weights in evidence.weights if weights.role == "producer"]
    return -np.abs(first.values).max(axis=1)  # the channel with the largest weight goes first
"""
BROKEN = "def importance(evidence, thresholds):\n    return [1.0]\n"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``sensai prune`` of an untrained network, half of each layer's channels, without any training."""
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    save_file(models.create("mlp", 3, (13,)).state_dict(), tmp_path / "w.safetensors")
    options = {"data": "wine", "model": "mlp", "weights": tmp_path / "w.safetensors", "channels": 0.5, "images": 0,
               "recover-images": 0, "reconstruct-images": 0, "distil": 0, "threads": 1, "multiple": 1,
               "out": tmp_path / "run"}  # fmt: skip
    return ["prune", "--quiet", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def prune(command: list[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(command)


def kept_of_first_layer(path: Path) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The channels that every worker keeps of the first layer, and that layer's weight in the reference."""
    run = Run.open(path)
    cuts = [run.network(run.folder(worker)).cut for worker in range(run.assignment.n_workers)]
    layer = min(cuts[0])
    weight = dict(run.load("reference").network.named_modules())[layer].weight
    return [cut[layer] for cut in cuts], weight.detach().numpy()


def test_a_criterion_of_one_s_own_is_one_file(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "largest_first.py").write_text(OWN)
    prune([*command, "--criterion", "largest_first:importance"])
    kept, weight = kept_of_first_layer(tmp_path / "run")
    smallest = np.argsort(np.abs(weight).max(axis=1))[: len(weight) // 2]
    assert kept == 3 * [tuple(sorted(smallest.tolist()))]


@pytest.mark.parametrize("criterion", ["l1_norm", "lamp"])
def test_a_criterion_of_weights_keeps_the_same_channels_in_all_workers(
    command: list[str], tmp_path: Path, criterion: str
) -> None:
    prune([*command, "--criterion", criterion])
    kept, weight = kept_of_first_layer(tmp_path / "run")
    assert len(set(kept)) == 1
    strength = np.abs(weight).sum(axis=1)
    assert strength[list(kept[0])].mean() > strength.mean()


def test_a_criterion_that_gives_no_importance_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_criterion.py").write_text(BROKEN)
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--criterion", "broken_criterion:importance"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "criterion broken_criterion:importance gives shape [1] for " in error


def test_bn_scale_needs_batch_normalisation(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--criterion", "bn_scale"])
    assert "criterion bn_scale: no batch normalisation scales the channels of " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
