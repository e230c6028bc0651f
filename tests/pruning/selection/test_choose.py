"""The criterion that a recipe names decides which channels stay, one of a user's own too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pruning import models
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from sensai_serve.errors import InputError

OWN = """
import numpy as np

def importance(evidence, thresholds):
    (first,) = [weights for weights in evidence.weights if weights.role == "producer"]
    return -np.abs(first.values).max(axis=1)  # the channel with the largest weight goes first
"""
BROKEN = "def importance(evidence, thresholds):\n    return [1.0]\n"


@pytest.fixture
def prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """Cuts an untrained network by a criterion, half of each layer's channels, without any training."""
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    save_file(models.create("mlp", 3, (13,)).state_dict(), tmp_path / "w.safetensors")
    recipe = Recipe("wine", "mlp", target="channels", amount=0.5, multiple=1, images=0, recover_images=0,
                    reconstruct_images=0, distil=0.0)  # fmt: skip

    def run(criterion: str) -> Run:
        plan = make_plan(replace(recipe, criterion=criterion), tmp_path / "w.safetensors", threads=1)
        return prune_reference(plan, tmp_path / "run")

    return run


def kept_of_first_layer(run: Run) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The channels that every worker keeps of the first layer, and that layer's weight in the reference."""
    cuts = [run.network(run.folder(worker)).cut for worker in range(run.assignment.n_workers)]
    layer = min(cuts[0])
    weight = dict(run.load("reference").network.named_modules())[layer].weight
    return [cut[layer] for cut in cuts], weight.detach().numpy()


def test_a_criterion_of_one_s_own_is_one_file(prune: Callable[[str], Run], tmp_path: Path) -> None:
    (tmp_path / "largest_first.py").write_text(OWN)
    kept, weight = kept_of_first_layer(prune("largest_first:importance"))
    smallest = np.argsort(np.abs(weight).max(axis=1))[: len(weight) // 2]
    assert kept == 3 * [tuple(sorted(smallest.tolist()))]


@pytest.mark.parametrize("criterion", ["l1_norm", "lamp"])
def test_a_criterion_of_weights_keeps_the_same_channels_in_all_workers(
    prune: Callable[[str], Run], criterion: str
) -> None:
    kept, weight = kept_of_first_layer(prune(criterion))
    assert len(set(kept)) == 1
    strength = np.abs(weight).sum(axis=1)
    assert strength[list(kept[0])].mean() > strength.mean()


def test_a_criterion_that_gives_no_importance_is_one_line(prune: Callable[[str], Run], tmp_path: Path) -> None:
    (tmp_path / "broken_criterion.py").write_text(BROKEN)
    with pytest.raises(InputError, match=r"criterion broken_criterion:importance gives shape \[1\] for ") as caught:
        prune("broken_criterion:importance")
    assert "\n" not in str(caught.value)


def test_bn_scale_needs_batch_normalisation(prune: Callable[[str], Run], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="criterion bn_scale: no batch normalisation scales the channels of "):
        prune("bn_scale")
    assert not (tmp_path / "run").exists()
