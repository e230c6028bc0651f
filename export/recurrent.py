"""Writes recurrent layers as the operators that ONNX has for them, whatever the number of steps.

torch's exporter follows a recurrent layer step by step before it puts it together again: that fixes the number of
steps, takes seconds, and ends at an LSTM with a projection, which ONNX has no operator for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sensai_serve.errors import ModelError

_KINDS: dict[type[nn.RNNBase], tuple[str, tuple[int, ...]]] = {
    nn.LSTM: ("LSTM", (0, 3, 1, 2)),
    nn.GRU: ("GRU", (1, 0, 2)),
    nn.RNN: ("RNN", (0,)),
}
"""The operator of each kind of layer, and where its gates are in torch's order."""
_BUFFER = "onnx_{}_{}"


@contextmanager
def as_operators(model: nn.Module) -> Iterator[None]:
    """While the block runs, the recurrent layers of `model` are one ONNX operator for each of their layers.

    Only an exporter can run the model then.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.RNNBase) and type(layer) in _KINDS
    ]
    added = [(layer, key) for _, layer in layers for key in _add_weights(layer)]
    try:
        for name, layer in layers:
            layer.forward = _operators_of(layer, name)
        yield
    finally:
        for _, layer in layers:
            del layer.forward
        for layer, key in added:
            delattr(layer, key)


def _add_weights(layer: nn.RNNBase) -> list[str]:
    """Give a layer its weights in ONNX's order, so that they are constants of the graph; returns what they are called.

    A projection P of the hidden units h is taken into the recurrent weights R: these read P h, and R P reads h.
    """
    _, order = _KINDS[type(layer)]
    names = []

    def in_order(value: Tensor) -> Tensor:
        gates = value.detach().reshape(len(order), layer.hidden_size, -1)[list(order)]
        return gates.reshape(value.shape)

    for number in range(layer.num_layers):
        found: dict[str, list[Tensor]] = {"W": [], "R": [], "B": [], "P": []}
        for direction in ("", "_reverse")[: 1 + layer.bidirectional]:
            own: dict[str, Tensor] = {key: getattr(layer, f"{key}_l{number}{direction}") for key in _parts(layer)}
            recurrent = own["weight_hh"]
            if layer.proj_size:
                recurrent = recurrent @ own["weight_hr"]
                found["P"].append(own["weight_hr"].detach().T.clone())
            found["W"].append(in_order(own["weight_ih"]))
            found["R"].append(in_order(recurrent))
            none = own["weight_ih"].new_zeros(len(own["weight_ih"]))
            found["B"].append(torch.cat([in_order(own.get(key, none)) for key in ("bias_ih", "bias_hh")]))
        for key, values in found.items():
            if values:
                names.append(_BUFFER.format(key, number))
                layer.register_buffer(names[-1], torch.stack(values), persistent=False)
    return names


def _parts(layer: nn.RNNBase) -> list[str]:
    """Names of what each layer and direction of a recurrent layer has, without the number and the direction."""
    projection = ["weight_hr"] if layer.proj_size else []
    return ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else []), *projection]


def _operators_of(layer: nn.RNNBase, name: str) -> Any:
    operator, _ = _KINDS[type(layer)]
    directions = 1 + layer.bidirectional
    attributes: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": "bidirectional" if layer.bidirectional else "forward",
    }
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
    if operator == "RNN":
        attributes["activations"] = [layer.nonlinearity.capitalize()] * directions  # type: ignore[operator,union-attr]

    def forward(x: Tensor, hx: Any = None) -> Any:
        if not isinstance(x, Tensor):
            raise ModelError(f"export: {name} runs on a {type(x).__name__}, expected a tensor [N, steps, readings]")
        if hx is not None and layer.proj_size:
            raise ModelError(
                f"export: {name}, an LSTM with a projection, begins with a state that is given to it, which "
                "ONNX cannot express; expected none"
            )
        batched = x.ndim == 3
        if not batched:
            x = x.unsqueeze(0 if layer.batch_first else 1)
        if layer.batch_first:
            x = x.transpose(0, 1)
        steps, n = x.shape[:2]
        given = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        states = [state if batched else state.unsqueeze(1) for state in given]
        ends: list[list[Tensor]] = [[], []]
        for number in range(layer.num_layers):
            weights = [getattr(layer, _BUFFER.format(key, number)) for key in "WRB"]
            begin = [state[number * directions : (number + 1) * directions] for state in states]
            end = (directions, n, layer.hidden_size)
            shapes = [(steps, *end), end, end][: 3 if operator == "LSTM" else 2]
            y, *last = torch.onnx.ops.symbolic_multi_out(
                operator,
                (x, *weights, *([None, *begin] if begin else [])),
                attributes,
                dtypes=[x.dtype] * len(shapes),
                shapes=shapes,
            )
            if layer.proj_size:
                projection = getattr(layer, _BUFFER.format("P", number))  # [directions, units, projected]
                y, last[0] = y @ projection, last[0] @ projection
            x = y.transpose(1, 2).flatten(2)  # [steps, N, directions x units]
            for state, of_layer in zip(ends, last, strict=False):
                state.append(of_layer)
        outputs = x.transpose(0, 1) if layer.batch_first else x
        hidden, *cell = (torch.cat(state) for state in ends if state)
        if not batched:
            outputs = outputs.squeeze(0 if layer.batch_first else 1)
            hidden, cell = hidden.squeeze(1), [state.squeeze(1) for state in cell]
        return (outputs, (hidden, *cell)) if cell else (outputs, hidden)

    return forward
