"""Recurrent layers and 1-d convolutions: without some units, what the whole network computes with zeros for them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import sequences

from pruning.criteria import Member
from pruning.cutting.channels import ChannelGroup, find_channel_groups
from pruning.cutting.cut import apply_cut
from pruning.cutting.evidence import gather_evidence
from pruning.cutting.layers import count_outputs
from pruning.cutting.ratios import cut_to_ratio
from pruning.cutting.reconstruct import reconstruct
from pruning.cutting.size import measure
from sensai_serve.errors import ModelError

SHAPE = (12, sequences.READINGS)
NETWORKS = (
    "gru", "lstm", "plain_rnn", "both_ends", "every_state", "flat", "cell", "projected", "stacked", "convolutions",
    "turned", "pointwise", "begun",
)  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(sequences, name)(5).eval()


def with_zeros(network: nn.Module, groups: list[ChannelGroup], kept) -> nn.Module:
    """A copy whose channels that are to go are 0 where recurrent layers make them, and read by no layer."""
    network = copy.deepcopy(network)

    def gone(member: Member, group: ChannelGroup):
        return member.positions[~np.isin(member.channels, kept[group.layer])]

    with torch.no_grad():
        for group in groups:
            for member in group.producers:
                layer = network.get_submodule(member.layer)
                if isinstance(layer, nn.RNNBase):
                    for name, value in layer.named_parameters():
                        if not layer.proj_size or name.startswith("weight_hr"):
                            value.view(-1, count_outputs(layer), value[0].numel())[:, gone(member, group)] = 0
            for member in group.consumers:
                layer = network.get_submodule(member.layer)
                if isinstance(layer, nn.RNNBase):
                    for direction in ("", "_reverse")[: 1 + layer.bidirectional]:
                        getattr(layer, f"weight_ih_l0{direction}")[:, gone(member, group)] = 0
                else:
                    layer.weight[:, gone(member, group)] = 0
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_computes_what_the_whole_one_does_with_zeros_for_those_units(name):
    network = made(name)
    groups = find_channel_groups(network, SHAPE)
    draw = np.random.default_rng(0)
    importance = {g.layer: np.tile(draw.random(g.channels // g.parts), g.parts) for g in groups}
    kept = cut_to_ratio(groups, importance, 0.5)
    small = apply_cut(network, kept, SHAPE)
    for group in groups:
        assert count_outputs(small.get_submodule(group.layer)) == len(kept[group.layer]) < group.channels
    layers = [layer for layer in network.modules() if isinstance(layer, nn.RNNBase)]
    in_groups = {member.layer for group in groups for member in group.producers}
    assert all(name in in_groups for name, layer in network.named_modules() if layer in layers)
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(small(x), with_zeros(network, groups, kept)(x), atol=1e-6, rtol=1e-5)
    assert measure(small, SHAPE).macs < measure(network, SHAPE).macs


def test_operations_of_a_recurrent_layer_are_its_weights_once_for_each_step():
    recurrent, linear = 3 * 16 * (5 + 16 + 2), 16 * 5 + 5
    size = measure(made("gru"), SHAPE)
    assert (size.parameters, size.macs) == (recurrent + linear, 12 * recurrent + linear)


@pytest.mark.parametrize("name", ["gru", "lstm", "projected"])
def test_a_unit_is_judged_by_all_of_its_weights(name):
    network = made(name)
    (group,) = find_channel_groups(network, SHAPE)
    producer, consumer = gather_evidence(group, network, lambda layer: pytest.fail("looks at activations")).weights
    layer = network.layer
    own = [
        value.detach() for key, value in layer.named_parameters() if not layer.proj_size or key.startswith("weight_hr")
    ]
    assert producer.values.size == sum(value.numel() for value in own)
    np.testing.assert_allclose(np.square(producer.values).sum(), sum(float(v.square().sum()) for v in own), rtol=1e-5)
    assert consumer.values.shape == (network.linear.in_features, 5)


def test_one_dimensional_convolutions_are_reconstructed():
    network = made("turned")
    kept = {"first": (0, 2, 3, 5, 8, 13)}
    small, x = apply_cut(network, kept, SHAPE), torch.randn(200, *SHAPE)
    with torch.no_grad():
        before = (small(x) - network(x)).square().mean()
        reconstruct(small, network, kept, x)
        assert (small(x) - network(x)).square().mean() < 0.7 * before


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.linear = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
        return self.linear(self.layer(packed)[1][-1])


def test_what_cannot_be_followed_names_the_layer():
    with pytest.raises(ModelError, match=r"Packed in layer .*PackedSequence") as caught:
        find_channel_groups(Packed().eval(), SHAPE)
    assert "\n" not in str(caught.value)
