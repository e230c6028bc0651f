"""Networks of every build, from pruning to ONNX: cut in width and depth, retrained, and the same in ONNX Runtime."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.parity import check_parity
from export.to_onnx import to_onnx
from pruning import models
from pruning.cutting.blocks import find_blocks, trace
from pruning.cutting.channels import ChannelGroup, find_channel_groups
from pruning.cutting.cut import apply_cut
from pruning.cutting.ratios import cut_to_ratio
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import InputSpec, normalise

SHAPE = (1, 8, 8)
BLOCKS = {
    "residual": 2,
    "grouped": 2,
    "depthwise": 2,
    "gated": 0,
    "concatenating": 0,
    "branching": 3,
    "transformer": 4,
    "transformer_of_modules": 4,
}

WHOLE = {"depthwise", "transformer_of_modules"}
"""Whose networks are recovered first and then made for several workers; the others have one, made at once."""


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.parametrize("name", BLOCKS)
def test_pruned_exported_and_the_same_in_onnx_runtime(name, tmp_path):
    torch.manual_seed(0)
    reference = models.create(f"architectures:{name}", 10, SHAPE)
    assert len(find_blocks(trace(reference), SHAPE)) == BLOCKS[name]
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    recipe = Recipe(
        "digits",
        f"architectures:{name}",
        assignment="grouped",
        groups=2 if name in WHOLE else 1,
        grouping="random",
        amount=0.5,
        depth=1 / BLOCKS[name] if BLOCKS[name] else 0.0,
        recover_images=256 if name in WHOLE else 0,
        images=256,
        batch=64,
        profile_images=16,
        reconstruct_images=64,
    )
    plan = make_plan(recipe, tmp_path / "w.safetensors", threads=1)
    run = prune_reference(plan, tmp_path / "run")
    inputs = normalise(plan.dataset.x[plan.validation], plan.dataset.spec)
    for worker in range(plan.assignment.n_workers):
        subnet, network = run.load(run.folder(worker)), run.network(run.folder(worker))
        assert network.macs <= plan.size.macs / 2
        assert len(network.removed) == min(BLOCKS[name], 1)
        with torch.no_grad():
            np.testing.assert_allclose(subnet(torch.from_numpy(inputs)), run.validation_scores(worker), atol=1e-5)
    exported = to_onnx(subnet, [InputSpec(SHAPE)])
    check_parity(subnet, exported, inputs[:8], name)
    operators = [node.op_type for node in onnx.load_from_string(exported).graph.node]
    layers = sum(isinstance(module, nn.Conv2d) for module in subnet.modules())
    assert operators.count("Conv") == layers  # those of a block that is gone are gone from the file


@functools.cache
def network_and_groups(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    """An architecture and its channel groups, which take seconds to find. Read them, do not change them."""
    network = models.create(f"architectures:{name}", 10, SHAPE)
    return network, find_channel_groups(network, SHAPE)


@pytest.mark.parametrize("name", BLOCKS)
def test_any_share_leaves_a_network_that_runs(name):
    network, groups = network_and_groups(name)
    generator = np.random.default_rng(0)
    importance = {
        group.layer: np.tile(generator.random(group.channels // group.parts), group.parts) for group in groups
    }
    for ratio in (0.05, 0.3, 0.6):
        cut = cut_to_ratio(groups, importance, ratio)
        assert apply_cut(network, cut, SHAPE)(torch.randn(2, *SHAPE)).shape == (2, 10)


def test_what_the_code_of_a_network_fixes_stays_whole_and_heads_lose_the_same():
    _, written_out = network_and_groups("transformer")
    assert not any("qkv" in group.layer for group in written_out)
    _, of_modules = network_and_groups("transformer_of_modules")
    assert {group.parts for group in of_modules if group.channels == 32} == {4}


class Fixed(nn.Module):
    """Its only channels are reshaped to a size that is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.output = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.first(x).reshape(-1, 7).contiguous())


class Own(nn.Module):
    """Makes tensors of its own, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.output = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.first(x + torch.arange(4.0)))


class Odd(nn.Module):
    """Uses numbers where torch-pruning needs a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Own())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_network_that_makes_tensors_of_its_own():
    assert [group.layer for group in find_channel_groups(Own(), (4,))] == ["first"]


def test_what_cannot_be_cut_or_followed_names_the_module():
    with pytest.raises(ModelError, match=r"no channels of Fixed can be cut: Fixed does not run without some of what f"):
        find_channel_groups(Fixed(), (4,))
    with pytest.raises(ModelError, match=r"cannot follow Odd in layers\.2 \(The size of tensor a \(8\)") as caught:
        find_channel_groups(Odd(), (4,))
    assert "\n" not in str(caught.value)
