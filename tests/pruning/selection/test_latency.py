"""A budget in microseconds: met by the subnets, kept when a run goes on, refused with the smallest there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pruning import models
from pruning.cutting.size import measure
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import RunPlan, make_plan
from pruning.recipe import Recipe
from pruning.run import RECOVERED, Run
from pruning.selection.latency import meet_budget
from sensai_serve.errors import InputError, ModelError

DIGITS = Recipe("digits", "resnet8", target="microseconds", amount=400.0, recover_images=128, images=128,
                profile_images=8, reconstruct_images=32)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "resnet8.safetensors"
    save_file(models.create("resnet8", 10, (1, 8, 8)).state_dict(), path)
    return path


def clock(subnet: nn.Module) -> float:
    """Stands for a clock that never jitters: a thousand MACs, and a layer's overhead, take their time."""
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in subnet.modules())
    return 20 * layers + measure(subnet, (1, 8, 8)).macs / 1000


def plan_for(weights: Path, **changes) -> RunPlan:
    return make_plan(replace(DIGITS, **changes), weights, threads=1)


@pytest.mark.parametrize("changes", [{}, {"depth": 1.0, "amount": 300.0}, {"recover_images": 0, "head": "sigmoid"}])
def test_subnets_take_no_longer_than_the_budget(weights, tmp_path, changes):
    plan = plan_for(weights, assignment="grouped", groups=2, grouping="random", **changes)
    budget = plan.recipe.amount
    assert clock(plan.reference) > 2 * budget
    run = prune_reference(plan, tmp_path / "run", latency=clock)
    for worker in range(2):
        assert 0.7 * budget < clock(run.load(run.folder(worker))) <= budget


def test_the_recovered_network_has_a_budget_of_its_own(weights, tmp_path):
    plan = plan_for(weights, assignment="grouped", groups=2, grouping="random", recover_amount=600.0)
    run = prune_reference(plan, tmp_path / "run", latency=clock)
    assert 450 < clock(run.load(RECOVERED)) <= 600
    assert 300 < clock(run.load(run.folder(0))) <= 400


def test_a_run_that_goes_on_does_not_measure_again(weights, tmp_path):
    plan = plan_for(weights, assignment="grouped", groups=2, grouping="random", recover_images=0)
    prune_reference(plan, tmp_path / "run", latency=clock)
    before = Run.open(tmp_path / "run").network("subnets/01")
    (tmp_path / "run/subnets/01/network.json").unlink()
    for file in (tmp_path / "run/subnets/01").iterdir():
        file.unlink()
    run = prune_reference(plan, tmp_path / "run", latency=lambda subnet: 1e9)
    assert run.network("subnets/01") == before
    assert run.recipe.to_json()["amount"] == 400.0


def test_a_budget_that_cannot_be_met_says_the_smallest_that_can(weights, tmp_path):
    message = (
        r"smallest network that can be reached has \d+ microseconds, expected at most 150; --multiple 1 .*; --depth"
    )
    with pytest.raises(ModelError, match=message):
        prune_reference(plan_for(weights, amount=150.0), tmp_path / "run", latency=clock)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        ModelError, match=r"expected at most 20; --multiple 1 leaves layers fewer than 8 channels$"
    ):  # no block is left to drop
        meet_budget(plan_for(weights, amount=20.0, depth=1.0), clock, lambda *_: None)


def test_a_budget_in_microseconds_needs_a_clock_and_makes_sense(weights):
    with pytest.raises(InputError, match="expected a way to measure them"):
        meet_budget(plan_for(weights), None, lambda *_: None)
    with pytest.raises(InputError, match=r"microseconds \(amount\) is 0, expected more than 0"):
        replace(DIGITS, amount=0)
    with pytest.raises(InputError, match="expected workers to take less"):
        replace(DIGITS, recover_amount=100.0)
