"""Dropping residual blocks: found in any style of writing, scored by the loss, gone from the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning import data, models
from pruning.cutting.blocks import block_importance, find_blocks, remove_blocks, trace
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import RECOVERED, Run
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import normalise

IMAGE = (3, 16, 16)


class Functional(nn.Module):
    """Every way to write an addition, and additions that go around no identity skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.project = nn.Conv2d(8, 8, 1)
        self.drop = nn.Identity()
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x)
        y += self.drop(x)  # in place, the skip through an identity
        x = self.relu(y)
        x = torch.add(x, self.b(self.relu(self.norm(x))))  # before the activation
        x = self.scale * self.c(x).relu() + x
        x = x.add(self.norm(x))  # nothing of weight in it
        x = self.project(x) + self.d(x)  # no identity
        x = x + 1.0
        x = F.relu(x + x.mean(dim=(2, 3), keepdim=True) * self.e(x).mean(dim=(2, 3), keepdim=True))  # broadcast
        return self.linear(x.mean(dim=(2, 3)))


class Nested(nn.Module):
    """A block that holds two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(4))
        self.output = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.a(x)
        y = y + self.b(y)
        return self.output(x + self.c(y))


def names(network: nn.Module, shape: tuple[int, ...]) -> list[str]:
    return [block.name for block in find_blocks(trace(network), shape)]


def test_blocks_are_found_in_any_style_of_writing():
    assert names(Functional(), IMAGE) == ["a", "b", "c", "e"]
    assert names(models.create("resnet8", 5, IMAGE), IMAGE) == ["layer1.0.conv1"]
    assert len(names(models.create("resnet20", 5, IMAGE), IMAGE)) == 7
    assert len(names(models.create("resnet56", 5, IMAGE), IMAGE)) == 25
    assert names(models.create("vgg11", 5, (3, 32, 32)), (3, 32, 32)) == []


@pytest.mark.parametrize("make", [Functional, lambda: models.create("resnet14", 5, IMAGE)])
def test_without_a_block_the_network_computes_what_it_does_with_the_branch_at_zero(make):
    torch.manual_seed(0)
    network = make().eval()
    x = torch.randn(3, *IMAGE)
    for block in find_blocks(trace(network), IMAGE):
        small = remove_blocks(network, [block.name], IMAGE).eval()
        zeroed = trace(network)
        branch = next(node for node in zeroed.graph.nodes if node.name == block.branch.name)
        addition = next(node for node in zeroed.graph.nodes if node.name == block.addition.name)
        with zeroed.graph.inserting_after(branch):
            nothing = zeroed.graph.call_function(torch.zeros_like, (branch,))
        addition.replace_input_with(branch, nothing)
        zeroed.recompile()
        torch.testing.assert_close(small(x), zeroed(x))
        assert len(dict(small.named_modules())) < len(dict(network.named_modules()))


def test_a_block_that_holds_others_may_go_when_they_are_gone():
    torch.manual_seed(0)
    network = Nested().eval()
    assert names(network, (8,)) == ["a", "b"]
    assert names(remove_blocks(network, ["a", "b"], (8,)), (8,)) == ["c"]
    small = remove_blocks(network, ["a", "b", "c"], (8,))
    x = torch.randn(2, 8)
    torch.testing.assert_close(small(x), network.output(network.stem(x)))
    with pytest.raises(ModelError, match="the model has no residual block d"):
        remove_blocks(network, ["a", "d"], (8,))


def test_a_network_without_blocks_or_that_cannot_be_followed_is_one_clear_line():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"torch.fx cannot follow Sequential in 1 \(symbolically traced") as caught:
        trace(nn.Sequential(nn.Linear(2, 2), Branching()))
    assert "\n" not in str(caught.value)


def test_the_importance_of_a_block_is_what_scaling_its_output_changes():
    torch.manual_seed(0)
    dataset = data.load("digits")
    network = trace(models.create("resnet14", 10, dataset.spec.shape).eval())
    blocks = find_blocks(network, dataset.spec.shape)
    indices = np.arange(300)
    measured = block_importance(network, blocks, dataset, indices)

    scale, some = 1e-2, indices[dataset.y[indices] == 3]
    x, y = torch.from_numpy(normalise(dataset.x[some], dataset.spec)), torch.from_numpy(dataset.y[some])
    for block in blocks:
        scaled = trace(network)
        branch = next(node for node in scaled.graph.nodes if node.name == block.branch.name)
        with scaled.graph.inserting_after(branch):
            other = scaled.graph.call_function(torch.mul, (branch, 1 - scale))
        branch.replace_all_uses_with(other, delete_user_cb=lambda user, other=other: user is not other)
        scaled.recompile()
        with torch.no_grad():
            before, after = (F.cross_entropy(net(x).double(), y, reduction="none") for net in (network, scaled))
        assert measured[block.name][3] == pytest.approx(float((before - after).abs().mean() / scale), rel=0.2)


class Row(nn.Module):
    """Four blocks of one layer each, for digits."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem, self.output = nn.Linear(64, 16), nn.Linear(16, n_classes)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.output(x)


def row(n_classes: int) -> nn.Module:
    return Row(n_classes)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    torch.manual_seed(0)
    save_file(Row(10).state_dict(), path)
    return path


DIGITS = Recipe(
    "digits", f"{__name__}:row", assignment="grouped", groups=2, grouping="random", recover_images=256, images=256,
    amount=0.5,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 0.5},
        {"depth": 0.5, "recover_images": 0, "target": "channels", "amount": 0.0},
        {"depth": 0.75, "recover_depth": 0.25, "recover_amount": 0.6, "amount": 0.3},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_layers_are_gone_and_the_run_rebuilds_the_network(digits, tmp_path, changes):
    plan = make_plan(replace(DIGITS, **changes), digits, threads=1)
    run = prune_reference(plan, tmp_path / "run")
    n_blocks = len(names(plan.reference, plan.shape))
    if run.has(RECOVERED):
        recovered = changes.get("recover_depth", changes["depth"])
        assert len(run.network(RECOVERED).removed) == round(recovered * n_blocks)
    whole = layers(plan.reference)
    for worker in range(2):
        name = run.folder(worker)
        network, subnet = run.network(name), Run.open(run.path).load(name)
        assert len(network.removed) == round(changes["depth"] * n_blocks)
        assert layers(subnet) == whole - len(network.removed)
        inputs = normalise(plan.dataset.x[plan.validation], plan.dataset.spec)
        with torch.no_grad():
            np.testing.assert_allclose(subnet(torch.from_numpy(inputs)), run.validation_scores(worker), atol=1e-5)


def layers(network: nn.Module) -> int:
    return sum(isinstance(module, nn.Linear) for module in network.modules())


def test_depth_of_a_network_that_has_no_blocks_is_refused(digits, tmp_path):
    save_file(models.create("cnn", 10, (1, 8, 8)).state_dict(), tmp_path / "cnn.safetensors")
    plan = make_plan(replace(DIGITS, model="cnn", depth=0.5), tmp_path / "cnn.safetensors", threads=1)
    with pytest.raises(ModelError, match="no residual block around an identity skip that could be dropped"):
        prune_reference(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()
