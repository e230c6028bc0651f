"""Reconstruction: a cut network's layers make again what they made in the whole network, as far as they can."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning import models
from pruning.cutting.channels import find_channel_groups, kept_outputs
from pruning.cutting.cut import apply_cut
from pruning.cutting.ratios import cut_to_ratio
from pruning.cutting.reconstruct import reconstruct


def cut(network: nn.Module, shape: tuple[int, ...], ratio: float) -> tuple[nn.Module, dict[str, list[int]]]:
    groups = find_channel_groups(network, shape)
    generator = np.random.default_rng(0)
    chosen = cut_to_ratio(groups, {group.layer: generator.random(group.channels) for group in groups}, ratio)
    return apply_cut(network, chosen, shape), kept_outputs(groups, chosen)


def error(network: nn.Module, whole: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((network.eval()(x) - whole.eval()(x)).pow(2).mean())


def test_a_cut_network_comes_closer_to_the_whole_one():
    for name, shape in (("resnet8", (3, 16, 16)), ("cnn", (1, 8, 8)), ("mlp", (20,))):
        torch.manual_seed(0)
        whole = models.create(name, 4, shape)
        small, kept = cut(whole, shape, 0.25)
        x = torch.randn(128, *shape)
        before = error(small, whole, x)
        reconstruct(small, whole, kept, x)
        assert error(small, whole, x) < 0.7 * before, name


def test_channels_that_others_can_stand_in_for_cost_nothing():
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():  # the second four repeat the first four
        whole[0].weight[4:] = whole[0].weight[:4]
        whole[0].bias[4:] = whole[0].bias[:4]
    small = apply_cut(whole, {"0": (0, 1, 2, 3)}, (6,))
    x = torch.randn(256, 6)
    assert error(small, whole, x) > 1e-2
    reconstruct(small, whole, {"0": [0, 1, 2, 3]}, x)
    assert error(small, whole, x) < 1e-4


def test_a_whole_network_stays_what_it_is_and_the_reference_is_not_touched():
    torch.manual_seed(0)
    whole = models.create("mlp", 4, (9,))
    before = copy.deepcopy(whole.state_dict())
    same = copy.deepcopy(whole)
    reconstruct(same, whole, {}, torch.randn(512, 9))
    for name, value in before.items():
        torch.testing.assert_close(same.state_dict()[name], value, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(whole.state_dict()[name], value, rtol=0, atol=0)


class ChannelsLast(nn.Module):
    """Linear layers on [N, H, W, C]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, hidden), nn.Linear(hidden, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [4, 32])
def test_linear_layers_are_fitted_on_the_last_axis_whatever_the_size_of_the_picture(side):
    torch.manual_seed(0)
    whole, small, kept = ChannelsLast(16), ChannelsLast(8), list(range(1, 16, 2))
    with torch.no_grad():
        small.up.weight.copy_(whole.up.weight[kept])
        small.up.bias.copy_(whole.up.bias[kept])
        small.down.weight.copy_(whole.down.weight[:, kept])
        small.down.bias.copy_(whole.down.bias)
    x = torch.randn(16, 6, side, side)
    before = error(small, whole, x)
    reconstruct(small, whole, {"up": kept}, x)
    assert error(small, whole, x) < 0.7 * before


class Shared(nn.Module):
    """One layer that runs twice, one grouped, one with other padding."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.grouped(self.twice(self.twice(x))))
        return self.linear(x.mean(dim=(2, 3)))


def test_layers_that_cannot_be_fitted_stay_as_they_are():
    torch.manual_seed(0)
    whole, other = Shared(), Shared()
    before = copy.deepcopy(other.state_dict())
    reconstruct(other, whole, {}, torch.randn(64, 4, 6, 6))
    after = other.state_dict()
    for name in ("twice", "grouped", "same"):
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"], rtol=0, atol=0)
    assert not torch.allclose(after["linear.weight"], before["linear.weight"])
