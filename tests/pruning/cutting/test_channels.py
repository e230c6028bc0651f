"""Cutting channels out of networks of every build: what is left computes what it did without the channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import models
from pruning.criteria import Statistics
from pruning.cutting.channels import ChannelGroup, find_channel_groups
from pruning.cutting.cut import apply_cut, compose
from pruning.cutting.evidence import gather_evidence
from pruning.cutting.graph import output_layer
from pruning.cutting.ratios import cut_below_threshold, cut_to_ratio, search_ratio
from pruning.cutting.size import measure
from sensai_serve.errors import ModelError

IMAGE = (3, 32, 32)


class Dense(nn.Module):
    """Concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grow1 = nn.Conv2d(8, 6, 3, padding=1)
        self.grow2 = nn.Conv2d(14, 6, 3, padding=1)
        self.linear = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.grow1(x))], dim=1)
        x = torch.cat([x, F.relu(self.grow2(x))], dim=1)
        return self.linear(x.mean(dim=(2, 3)))


class Depthwise(nn.Module):
    """An inverted residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.linear(x.mean(dim=(2, 3)))


class Joined(nn.Module):
    """Two branches are concatenated and then summed with a third."""

    def __init__(self, branches: int = 2) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 1)
        self.middle = nn.Conv2d(24, 24, 1)
        self.linear = nn.Linear(24, 5)
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        x = torch.cat([left, self.right(x) if self.branches == 2 else left], dim=1)
        return self.linear((x + self.middle(x)).mean(dim=(2, 3)))


class ChannelsLast(nn.Module):
    """ConvNeXt's block: linear layers on [N, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.up, self.down, self.linear = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.linear(x.mean(dim=(2, 3)))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))


NETWORKS = {
    "residual": lambda: models.create("resnet8", 5, IMAGE),
    "plain": lambda: models.create("vgg11", 5, IMAGE),
    "cnn": lambda: models.create("cnn", 5, IMAGE),
    "mlp": lambda: models.create("mlp", 5, IMAGE),
    "concatenating": Dense,
    "depthwise": Depthwise,
    "joined": Joined,
    "grouped": grouped,
    "flattened": flattened,
}


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()


def some_importance(groups):
    generator = np.random.default_rng(0)
    importance = {}
    for group in groups:
        per_part = generator.random(group.channels // group.parts)
        importance[group.layer] = np.tile(per_part, group.parts)
    return importance


@pytest.mark.parametrize(
    ("channels", "ratio", "kept"),
    [(64, 0.55, 24), (64, 0.98, 8), (20, 0.05, 16), (20, 0.0, 20), (12, 0.1, 8), (6, 0.5, 3)],
)
def test_layers_keep_a_multiple_where_they_have_that_many(channels, ratio, kept):
    group = ChannelGroup("1", channels, 1, (), ())
    importance = {"1": np.arange(channels)}
    assert cut_to_ratio([group], importance, ratio, multiple=8)["1"] == tuple(range(channels - kept, channels))


def test_a_cut_network_computes_what_the_whole_one_does_with_those_channels_unread(network):
    groups = find_channel_groups(network, IMAGE)
    kept = cut_to_ratio(groups, some_importance(groups), 0.5)
    small = apply_cut(network, kept, IMAGE)
    with torch.no_grad():
        for group in groups:
            for member in group.consumers:
                layer = network.get_submodule(member.layer)
                gone = member.positions[~np.isin(member.channels, kept[group.layer])]
                if getattr(layer, "groups", 1) == 1:
                    layer.weight[:, gone] = 0
    if any(
        getattr(m, "groups", 1) > 1 and m.groups != m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)
    ):
        assert small(torch.randn(2, *IMAGE)).shape == (2, 5)  # a grouped convolution regroups what is left
        return
    x = torch.randn(4, *IMAGE)
    torch.testing.assert_close(small(x), network(x), atol=1e-4, rtol=1e-4)
    assert measure(small, IMAGE).macs < measure(network, IMAGE).macs


def test_each_of_two_concatenated_branches_keeps_its_share():
    network = Joined().eval()
    groups = find_channel_groups(network, IMAGE)
    importance = {group.layer: np.arange(group.channels, dtype=float) for group in groups}
    small = apply_cut(network, cut_to_ratio(groups, importance, 0.75), IMAGE)
    assert [len(layer.weight) for layer in (small.left, small.right, small.middle)] == [3, 3, 6]
    with pytest.raises(ModelError, match="layer left would lose all 12 channels, none has an importance of 13"):
        cut_below_threshold(groups, importance, 13)


def test_a_branch_that_is_concatenated_with_itself_loses_the_same_channel_twice():
    network = Joined(branches=1).eval()
    (group,) = find_channel_groups(network, IMAGE)
    assert group.parts == 2
    small = apply_cut(network, cut_to_ratio([group], {group.layer: np.zeros(24)}, 0.75), IMAGE)
    assert (len(small.left.weight), len(small.middle.weight)) == (3, 6)
    assert small(torch.zeros(2, *IMAGE)).shape == (2, 5)


def test_linear_layers_on_the_last_of_four_axes_are_cut():
    network = ChannelsLast().eval()
    groups = {group.layer: group for group in find_channel_groups(network, IMAGE)}
    kept = (1, 4, 5, 9, 14)
    small = apply_cut(network, {"up": kept}, IMAGE)
    assert groups["up"].channels == 16
    with torch.no_grad():
        network.down.weight[:, [i for i in range(16) if i not in kept]] = 0
    x = torch.randn(2, *IMAGE)
    torch.testing.assert_close(small(x), network(x))


def test_the_whole_network_is_untouched(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    groups = find_channel_groups(network, IMAGE)
    apply_cut(network, cut_to_ratio(groups, some_importance(groups), 0.5), IMAGE)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_two_cuts_are_one(network):
    groups = find_channel_groups(network, IMAGE)
    first = cut_to_ratio(groups, some_importance(groups), 0.25)
    once = apply_cut(network, first, IMAGE)
    later = find_channel_groups(once, IMAGE)
    second = cut_to_ratio(later, some_importance(later), 0.25)
    twice = apply_cut(once, second, IMAGE)
    x = torch.randn(2, *IMAGE)
    torch.testing.assert_close(apply_cut(network, compose(first, second), IMAGE)(x), twice(x))


def test_the_least_important_channels_go():
    network = models.create("mlp", 5, (4,))
    groups = find_channel_groups(network, (4,))
    importance = {group.layer: np.arange(group.channels, dtype=float) for group in groups}
    assert [group.layer for group in groups] == ["1", "3"]
    assert cut_to_ratio(groups, importance, 0.75)["1"] == tuple(range(48, 64))
    assert cut_below_threshold(groups, importance, 60)["3"] == (60, 61, 62, 63)


def test_importance_of_a_flattened_channel_is_the_mean_over_its_positions():
    network = flattened()
    (group,) = find_channel_groups(network, IMAGE)
    values = np.arange(8 * 16, dtype=float)
    evidence = gather_evidence(group, network, lambda layer: Statistics(values, values, values, values))
    importance = evidence.over_activations(lambda statistics: statistics.magnitude)
    np.testing.assert_allclose(importance, np.arange(8 * 16).reshape(8, 16).mean(axis=1))


def test_the_output_layer_is_the_last_that_runs(network):
    assert network.get_submodule(output_layer(network, IMAGE)).out_features == 5


def test_a_layer_is_never_cut_away():
    network = models.create("cnn", 5, IMAGE)
    groups = find_channel_groups(network, IMAGE)
    importance = {group.layer: np.zeros(group.channels) for group in groups}
    with pytest.raises(ModelError, match=r"layer conv1 would lose all 32 channels.*expected a lower threshold"):
        cut_below_threshold(groups, importance, 0.1)
    with pytest.raises(ModelError, match=r"layer conv1 would lose all 32 channels at a pruning ratio of 1"):
        cut_to_ratio(groups, importance, 1.0)


def test_a_cut_of_another_network_is_refused():
    network = models.create("cnn", 5, IMAGE)
    with pytest.raises(ModelError, match="has no layer layer1"):
        apply_cut(network, {"layer1": (0,)}, IMAGE)
    for kept in ((), (32,)):
        with pytest.raises(ModelError, match="layer conv1 has 32 channels"):
            apply_cut(network, {"conv1": kept}, IMAGE)


def test_the_cut_meets_a_budget_closely_and_says_the_smallest_where_it_cannot():
    network = models.create("cnn", 5, IMAGE)
    groups = find_channel_groups(network, IMAGE)
    importance = some_importance(groups)

    def macs(ratio: float) -> int:
        return measure(apply_cut(network, cut_to_ratio(groups, importance, ratio), IMAGE), IMAGE).macs

    whole = macs(0)
    ratio = search_ratio(macs, whole // 4)
    assert 0.8 * whole / 4 < macs(ratio) <= whole // 4
    assert search_ratio(macs, whole) == 0
    with pytest.raises(ModelError, match="the smallest network that can be reached has"):
        search_ratio(macs, 10)


class Untraceable(nn.Module):
    """Nothing that a gradient could be followed through."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.linear(x)


def test_a_network_that_cannot_be_followed():
    with pytest.raises(ModelError, match="torch-pruning finds no channels in Untraceable"):
        find_channel_groups(Untraceable(), (4,))


def test_a_network_without_layers():
    with pytest.raises(ModelError, match="no convolution and no linear layer"):
        output_layer(nn.Flatten(), (4,))
