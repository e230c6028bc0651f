"""What a layer's kind says about it: how many outputs it has, where its channels lie, and which weights are whose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PRUNABLE = (*CONVOLUTIONS, nn.Linear, *RECURRENT)
"""Layers whose inputs are profiled."""
MAKERS = (*PRUNABLE, nn.Embedding)
"""Layers that make channels which can be cut."""


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a depthwise convolution: each output channel is made from one input channel of its own."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == layer.out_channels == layer.in_channels


def channel_axis(layer: nn.Module) -> int:
    """The axis of a layer's inputs and outputs that its channels lie on: 1 of a convolution, the last of others."""
    return 1 if isinstance(layer, CONVOLUTIONS) else -1


def count_outputs(layer: nn.Module) -> int:
    """Number of channels that a layer makes: of a recurrent one in one direction, its hidden units."""
    if isinstance(layer, RECURRENT):
        return layer.proj_size or layer.hidden_size
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    return len(layer.weight)  # type: ignore[arg-type]


def weights_by_output(layer: nn.Module) -> Tensor:
    """The weights [outputs, numbers] that make each output channel of a layer; [channels, 1] of a normalisation."""
    if isinstance(layer, RECURRENT):
        rows = [
            value.reshape(-1, count_outputs(layer), value[0].numel()).transpose(0, 1).flatten(1)
            for name, value in layer.named_parameters()
            if not layer.proj_size or name.startswith("weight_hr")
        ]
        return torch.cat(rows, dim=1).detach()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.T if isinstance(layer, nn.Embedding) else weight
    return weight.detach().reshape(len(weight), -1)


def weights_by_input(layer: nn.Module) -> Tensor:
    """The weights [inputs, numbers] that each input channel of a layer is multiplied by."""
    if isinstance(layer, RECURRENT):
        names = ("weight_ih_l0", "weight_ih_l0_reverse")[: 1 + layer.bidirectional]
        first: list[Tensor] = [getattr(layer, name) for name in names]
        return torch.cat(first).T.detach()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    n_groups = getattr(layer, "groups", 1)
    split = weight.detach().reshape(n_groups, len(weight) // n_groups, weight.shape[1], -1)
    return split.transpose(1, 2).reshape(n_groups * weight.shape[1], -1)
