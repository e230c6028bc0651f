"""Layers that torch-pruning cuts wrongly or not at all, as it is told to: recurrent ones, and what picks logits.

A hidden unit goes from all gates, layers and directions of an `nn.LSTM` or `nn.GRU` alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.pruner.function import BasePruningFunc, LinearPruner

from pruning.cutting.layers import RECURRENT, count_outputs
from pruning.models import ClassLogits


class UnitPruner(BasePruningFunc):  # type: ignore[misc]
    """Tells torch-pruning how units, and inputs, are cut out of a recurrent layer."""

    def prune_out_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.RNNBase:
        """Cut the units `idxs`."""
        width = count_outputs(layer)
        kept = sorted(set(range(width)) - set(idxs))
        n_gates = len(layer.weight_ih_l0) // layer.hidden_size  # type: ignore[arg-type]
        in_all_gates = [gate * width + unit for gate in range(n_gates) for unit in kept]
        from_all_directions = [at * width + unit for at in range(1 + layer.bidirectional) for unit in kept]
        for name, parameter in list(layer.named_parameters()):
            kind, _, number = name.partition("_l")
            value = parameter.detach()
            if not layer.proj_size:
                value = value[in_all_gates]
            elif kind == "weight_hr":
                value = value[kept]
            if kind == "weight_hh":
                value = value[:, kept]
            elif kind == "weight_ih" and number.removesuffix("_reverse") != "0":
                value = value[:, from_all_directions]
            setattr(layer, name, nn.Parameter(value.clone(), parameter.requires_grad))
        if layer.proj_size:
            layer.proj_size = len(kept)
        else:
            layer.hidden_size = len(kept)
        layer.flatten_parameters()
        _narrow_states(layer, kept)
        return layer

    def prune_in_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.RNNBase:
        """Cut the inputs `idxs`."""
        kept = sorted(set(range(layer.input_size)) - set(idxs))
        for name in ("weight_ih_l0", "weight_ih_l0_reverse")[: 1 + layer.bidirectional]:
            value: nn.Parameter = getattr(layer, name)
            setattr(layer, name, nn.Parameter(value.detach()[:, kept].clone(), value.requires_grad))
        layer.input_size = len(kept)
        layer.flatten_parameters()
        return layer

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        """Number of units."""
        return count_outputs(layer)

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        """Number of inputs."""
        return layer.input_size


class OutputPruner(LinearPruner):  # type: ignore[misc]
    """Tells torch-pruning that what picks logits out of those of all classes reads no channels."""

    def prune_in_channels(self, layer: nn.Linear, idxs: Sequence[int]) -> nn.Linear:
        """Leave the layer as it is."""
        return layer

    def get_in_channels(self, layer: nn.Linear) -> None:
        """None: nothing that is coupled with it says how many channels it has."""
        return


def pruners(model: nn.Module) -> dict[type[nn.Module], BasePruningFunc]:
    """A pruner for each kind of layer in `model` that torch-pruning has none for, by the very class of the layer."""
    found: dict[type[nn.Module], BasePruningFunc] = {ClassLogits: OutputPruner()}
    for layer in model.modules():
        if isinstance(layer, RECURRENT):
            found[type(layer)] = UnitPruner()
    return found


def _narrow_states(layer: nn.RNNBase, kept: Sequence[int]) -> None:
    """Let a layer that lost units still take initial states of all units, as a network's code may make them."""
    stay = torch.tensor(kept, device=layer.weight_ih_l0.device)  # type: ignore[arg-type]
    if (before := getattr(layer, "kept_units", None)) is None:
        layer.register_buffer("kept_units", stay, persistent=False)
        layer.register_forward_pre_hook(_narrow, with_kwargs=True)
    else:
        layer.kept_units = before[stay]


def _narrow(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def narrow(state: Any) -> Any:
        if isinstance(state, tuple):
            return tuple(map(narrow, state))
        wide = isinstance(state, Tensor) and state.shape[-1] not in (layer.hidden_size, layer.proj_size)
        return state.index_select(-1, layer.kept_units) if wide else state

    return (*given[:1], *map(narrow, given[1:])), {name: narrow(value) for name, value in named.items()}
