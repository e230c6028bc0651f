"""Stands in for recurrent layers while torch-pruning follows a network.

It follows gradients from operator to operator. A recurrent layer is a single operator on one machine and hundreds, one
for each step, on another. The stand-in gives zeros that show which channels they are of: the layer's hidden units, side
by side where it reads in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruning.cutting.layers import RECURRENT, count_outputs


@contextmanager
def stood_in_for(model: nn.Module) -> Iterator[None]:
    """While the block runs, the recurrent layers of `model` give outputs that show which units they are made of."""
    layers = [layer for layer in model.modules() if isinstance(layer, RECURRENT)]
    stand_ins = {layer: _StandIn(layer) for layer in layers}
    places = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent._modules.items()
        if isinstance(child, RECURRENT)
    ]
    try:
        for layer in layers:
            layer.forward = _units_of(layer)  # type: ignore[method-assign]
        for parent, name, child in places:
            parent._modules[name] = stand_ins[child]
        yield
    finally:
        for layer in layers:
            del layer.forward
        for parent, name, child in places:
            parent._modules[name] = child


class _Units(torch.autograd.Function):
    """Makes zeros [..., width] that depend on a tensor [..., inputs]; nothing is computed from them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int) -> Tensor:
        return x.new_zeros(*x.shape[:-1], width)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Never run: the graph of operators is read, and no gradient is asked for. Zeros would be wrong ones."""
        raise NotImplementedError("the stand-in of a recurrent layer has no gradients, expected none to be asked for")


def _units_of(layer: nn.RNNBase) -> Any:
    def forward(x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"{type(layer).__name__} runs on a {type(x).__name__}, and is followed on tensors only")
        return _Units.apply(x, count_outputs(layer))  # type: ignore[no-any-return,no-untyped-call]

    return forward


class _StandIn(nn.Module):
    """Gives what a recurrent layer gives, in the same shapes; other attributes are the layer's."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        layer: nn.RNNBase = self.layer
        units: Tensor = layer(x)  # [..., steps, units], its hooks run
        steps = -2 if layer.batch_first or x.ndim == 2 else 0
        for given in hx if isinstance(hx, tuple) else (hx,):
            if given is not None and given.requires_grad and given.shape[-1] == units.shape[-1]:
                units = units + given[0].unsqueeze(steps)  # a unit of the state is that unit of the layer
        directions = 1 + layer.bidirectional
        last = units.select(steps, -1)
        hidden = torch.stack([last * 1 for _ in range(directions * layer.num_layers)])
        outputs = torch.cat([units, units * 1], dim=-1) if layer.bidirectional else units
        if not isinstance(layer, nn.LSTM):
            return outputs, hidden
        return outputs, (
            hidden,
            hidden if not layer.proj_size else last.new_zeros(*hidden.shape[:-1], layer.hidden_size),
        )
