"""Calibration: scores as sure as they are right, in the weights of the output layer, on unseen images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pruning import heads
from pruning.pipeline.prune import prune_reference
from pruning.pipeline.subnet import labels_as
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.training.calibrate import fit_scale, fold_scale
from pruning.training.loop import infer
from pruning.training.reference import train
from sensai_serve import plugins

HEADS = plugins.available("pruning.heads")


@pytest.mark.parametrize("name", HEADS)
def test_the_scale_that_made_the_labels_is_found(name):
    torch.manual_seed(0)
    head, logits = heads.find(name), torch.randn(20_000, 4)
    for scale in (0.4, 1.0, 3.0):
        probabilities = head.probabilities(logits * scale)
        if name == "sigmoid":
            labels = torch.bernoulli(probabilities)
        else:
            labels = nn.functional.one_hot(torch.multinomial(probabilities, 1)[:, 0], 4).float()
        assert fit_scale(head, logits, labels) == pytest.approx(scale, rel=0.1)


def test_few_images_that_are_all_right_make_no_network_infinitely_sure():
    targets = torch.eye(3).repeat(4, 1)
    assert 1 < fit_scale(heads.find("softmax"), 2 * targets, targets) < 4
    assert fit_scale(heads.find("softmax"), -9 * targets, targets) >= 1 / 20.1  # all wrong: not sure at all


def test_the_scale_goes_into_the_output_layer():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    expected = layer(x) * 2.5
    fold_scale(layer, 2.5)
    torch.testing.assert_close(layer(x), expected)


def test_a_calibrated_run_votes_as_before_with_scores_that_fit_the_labels_better(tmp_path):
    save_file(train("digits", "cnn", epochs=2, threads=1).model.state_dict(), tmp_path / "w.safetensors")
    recipe = Recipe("digits", "cnn", assignment="grouped", groups=2, recover_images=500, images=500,
                    profile_images=16, reconstruct_images=64)  # fmt: skip
    plain = make_plan(replace(recipe, calibration="none"), tmp_path / "w.safetensors", threads=1)
    calibrated = make_plan(recipe, tmp_path / "w.safetensors", threads=1)
    runs = [prune_reference(plan, tmp_path / plan.recipe.calibration) for plan in (plain, calibrated)]
    head = heads.find("sigmoid")
    for worker, row in enumerate(calibrated.assignment.rows):
        before, after = (
            infer(run.load(run.folder(worker)).network, plain.dataset, plain.dataset.x[plain.validation])
            for run in runs
        )
        assert ((before > 0) == (after > 0)).all()
        targets = labels_as(head, plain, row, torch.from_numpy(plain.dataset.y[plain.validation]))
        assert head.loss(torch.from_numpy(after), targets) < head.loss(torch.from_numpy(before), targets)
        torch.testing.assert_close(
            runs[1].validation_scores(worker), torch.sigmoid(torch.from_numpy(after)).numpy(), atol=1e-6, rtol=1e-5
        )
