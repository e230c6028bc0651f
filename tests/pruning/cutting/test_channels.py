"""Cutting channels out of networks of every build: what is left computes what it did without the channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import models
from pruning.cutting.channels import (
    Unit,
    apply_cut,
    compose,
    find_units,
    measure,
    output_layer,
    unit_importance,
)
from pruning.cutting.ratios import cut_below, cut_share, search_share
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
    "grouped": grouped,
    "flattened": flattened,
}


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()


def some_importance(units):
    generator = np.random.default_rng(0)
    importance = {}
    for unit in units:
        per_block = generator.random(unit.channels // unit.blocks)
        importance[unit.layer] = np.tile(per_block, unit.blocks)
    return importance


@pytest.mark.parametrize(
    ("channels", "share", "kept"),
    [(64, 0.55, 24), (64, 0.98, 8), (20, 0.05, 16), (20, 0.0, 20), (12, 0.1, 8), (6, 0.5, 3)],
)
def test_layers_keep_a_multiple_where_they_have_that_many(channels, share, kept):
    unit = Unit("1", channels, 1, (), ())
    importance = {"1": np.arange(channels)}
    assert cut_share([unit], importance, share, multiple=8)["1"] == tuple(range(channels - kept, channels))


def test_a_cut_network_computes_what_the_whole_one_does_with_those_channels_unread(network):
    units = find_units(network, IMAGE)
    kept = cut_share(units, some_importance(units), 0.5)
    small = apply_cut(network, kept, IMAGE)
    with torch.no_grad():
        for unit in units:
            for link in unit.readers:
                layer = network.get_submodule(link.layer)
                gone = link.at[~np.isin(link.source, kept[unit.layer])]
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


def test_the_whole_network_is_untouched(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    units = find_units(network, IMAGE)
    apply_cut(network, cut_share(units, some_importance(units), 0.5), IMAGE)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_two_cuts_are_one(network):
    units = find_units(network, IMAGE)
    first = cut_share(units, some_importance(units), 0.25)
    once = apply_cut(network, first, IMAGE)
    later = find_units(once, IMAGE)
    second = cut_share(later, some_importance(later), 0.25)
    twice = apply_cut(once, second, IMAGE)
    x = torch.randn(2, *IMAGE)
    torch.testing.assert_close(apply_cut(network, compose(first, second), IMAGE)(x), twice(x))


def test_the_least_important_channels_go():
    network = models.create("mlp", 5, (4,))
    units = find_units(network, (4,))
    importance = {unit.layer: np.arange(unit.channels, dtype=float) for unit in units}
    assert [unit.layer for unit in units] == ["1", "3"]
    assert cut_share(units, importance, 0.75)["1"] == tuple(range(48, 64))
    assert cut_below(units, importance, 60)["3"] == (60, 61, 62, 63)


def test_importance_of_a_flattened_channel_is_the_mean_over_its_positions():
    network = flattened()
    (unit,) = find_units(network, IMAGE)
    importance = unit_importance(unit, lambda layer: np.arange(8 * 16, dtype=float))
    np.testing.assert_allclose(importance, np.arange(8 * 16).reshape(8, 16).mean(axis=1))


def test_the_output_layer_is_the_last_that_runs(network):
    assert network.get_submodule(output_layer(network, IMAGE)).out_features == 5


def test_a_layer_is_never_cut_away():
    network = models.create("cnn", 5, IMAGE)
    units = find_units(network, IMAGE)
    importance = {unit.layer: np.zeros(unit.channels) for unit in units}
    with pytest.raises(ModelError, match=r"layer conv1 would lose all 32 channels.*expected a lower threshold"):
        cut_below(units, importance, 0.1)
    with pytest.raises(ModelError, match=r"layer conv1 would lose all 32 channels at a share of 1"):
        cut_share(units, importance, 1.0)


def test_a_cut_of_another_network_is_refused():
    network = models.create("cnn", 5, IMAGE)
    with pytest.raises(ModelError, match="has no layer layer1"):
        apply_cut(network, {"layer1": (0,)}, IMAGE)
    for kept in ((), (32,)):
        with pytest.raises(ModelError, match="layer conv1 has 32 channels"):
            apply_cut(network, {"conv1": kept}, IMAGE)


def test_the_cut_meets_a_budget_closely_and_says_the_smallest_where_it_cannot():
    network = models.create("cnn", 5, IMAGE)
    units = find_units(network, IMAGE)
    importance = some_importance(units)

    def macs(share: float) -> int:
        return measure(apply_cut(network, cut_share(units, importance, share), IMAGE), IMAGE).macs

    whole = macs(0)
    share = search_share(macs, whole // 4)
    assert 0.8 * whole / 4 < macs(share) <= whole // 4
    assert search_share(macs, whole) == 0
    with pytest.raises(ModelError, match="the smallest network that can be reached has"):
        search_share(macs, 10)


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
        find_units(Untraceable(), (4,))


def test_a_network_without_layers():
    with pytest.raises(ModelError, match="no convolution and no linear layer"):
        output_layer(nn.Flatten(), (4,))
