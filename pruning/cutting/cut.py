"""Cuts channels out of a network, and with each all that is coupled to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from pruning.cutting.graph import dependency_graph
from sensai_serve.errors import ModelError

Cut = Mapping[str, tuple[int, ...]]
"""The output channels that stay, ascending, by the name of the channel group."""


def apply_cut(model: nn.Module, cut: Cut, input_shape: Sequence[int]) -> nn.Module:
    """A copy of `model` with only the channels of `cut` left.

    Raises:
        ModelError: the cut is not of this network, or leaves a layer without channels.
    """
    model = copy.deepcopy(model)
    graph = dependency_graph(model, input_shape)
    for name, kept in cut.items():
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            raise ModelError(f"cut: the model has no layer {name}") from None
        pruner = graph.get_pruner_of_module(layer)
        n_channels = None if pruner is None else graph.get_out_channels(layer)
        if n_channels is None or not kept or max(kept) >= n_channels:
            raise ModelError(f"cut: layer {name} has {n_channels} channels, expected some of them to stay, not {kept}")
        if gone := sorted(set(range(n_channels)) - set(kept)):
            graph.get_pruning_group(layer, pruner.prune_out_channels, gone).prune(record_history=False)
    return model


def compose(first: Mapping[str, Sequence[int]], second: Cut) -> Cut:
    """The one cut that does what `first` does and then `second` to what is left.

    Args:
        first: channels that stay, by layer, for at least the layers of `second` that lost outputs: a cut, or its
            `pruning.cutting.channels.kept_outputs`.
        second: a cut of all groups that are left.
    """
    return {name: tuple(first[name][i] for i in kept) if name in first else kept for name, kept in second.items()}
