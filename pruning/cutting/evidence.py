"""Gathers what a criterion judges a channel group by: statistics of activations, and the weights of its layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pruning.criteria import GroupEvidence, Member, MemberWeights, Role, Statistics
from pruning.cutting.channels import ChannelGroup
from pruning.cutting.layers import is_depthwise, weights_by_input, weights_by_output


def gather_evidence(
    group: ChannelGroup, network: nn.Module, statistics_of: Callable[[str], Statistics]
) -> GroupEvidence:
    """The evidence of one group of `network`.

    Args:
        group: one of the network's channel groups.
        network: where the layers are that the group names.
        statistics_of: statistics of the inputs of a layer, by its name; called only by criteria that look at them.
    """
    weights = [_weights(network, member, "producer") for member in group.producers]
    weights += [
        _weights(network, member, "consumer")
        for member in group.consumers
        if not is_depthwise(network.get_submodule(member.layer))  # its only weight is counted as a producer's
    ]
    for member in group.norms:
        norm = network.get_submodule(member.layer)
        if norm.weight is not None:
            role: Role = "layer_norm" if isinstance(norm, nn.LayerNorm) else "batch_norm"
            weights.append(_weights(network, member, role))
    return GroupEvidence(group.layer, group.channels, group.consumers, tuple(weights), statistics_of)


def _weights(network: nn.Module, member: Member, role: Role) -> MemberWeights:
    layer = network.get_submodule(member.layer)
    weight = weights_by_input(layer) if role == "consumer" else weights_by_output(layer)
    return MemberWeights(member, role, weight.cpu().double().numpy()[member.positions])
