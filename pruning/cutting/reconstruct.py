"""Reconstructs a cut network: each layer is fitted to make, from what is left of its input, what it made before.

Layer by layer, in the order in which they run, the weights become the least-squares fit of the whole network's outputs
on the channels that stay; batch normalisation takes its statistics anew. One pass over a few images, no gradient.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017, section 3.1
(reconstruction), https://arxiv.org/abs/1707.06168.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 65_536
"""Number of outputs that each layer is fitted to: images times evenly spaced positions."""
RIDGE = 1e-3
"""Strength of the pull towards the weights that the cut left, relative to the mean square of the inputs."""
CHUNK = 16
"""Images whose inputs are unfolded at a time."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def reconstruct(network: nn.Module, whole: nn.Module, kept: Mapping[str, Sequence[int]], inputs: Tensor) -> None:
    """Fit the layers of `network` to those of `whole`.

    Args:
        network: `whole` with channels cut; changed in place. Layers that are no plain linear layers or convolutions
            (grouped ones among them), or that run more than once, stay as they are.
        whole: what it was cut from.
        kept: for layers that lost outputs, the positions of those that stay.
        inputs: [N, *shape], a few hundred, ready for the network.
    """
    wanted: dict[str, Tensor] = {}
    runs: dict[str, int] = {}

    def remember(name: str) -> Any:
        def hook(layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            wanted[name] = _output_rows(layer, output)

        return hook

    _run_with([m.register_forward_hook(remember(name)) for name, m in whole.named_modules() if _fits(m)], whole, inputs)

    def improve(name: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and runs.get(name) == 1:
                target = wanted.pop(name)
                _least_squares(layer, arguments[0], target[..., list(kept[name])] if name in kept else target)
            elif isinstance(layer, BATCH_NORMS) and layer.running_mean is not None and layer.running_var is not None:
                values = arguments[0].transpose(0, 1).flatten(1)
                layer.running_mean.copy_(values.mean(dim=1))
                layer.running_var.copy_(values.var(dim=1))

        return hook

    hooked = (m for m in network.named_modules() if _fits(m[1]) or isinstance(m[1], BATCH_NORMS))
    _run_with([m.register_forward_pre_hook(improve(name)) for name, m in hooked], network, inputs)


def _fits(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _run_with(hooks: Sequence[Any], network: nn.Module, inputs: Tensor) -> None:
    try:
        network.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _output_rows(layer: nn.Module, output: Tensor) -> Tensor:
    """A linear layer's [N, ..., channels], or a convolution's [N, channels, ...], to [N, positions, channels].

    The positions are evenly spaced. The layout is the layer's: a linear layer may run on [N, H, W, channels].
    """
    if isinstance(layer, nn.Linear):
        rows = output.reshape(len(output), -1, output.shape[-1])
    else:
        rows = output.flatten(2).transpose(1, 2)
    return rows[:, _positions(len(output), rows.shape[1], output.device)]


def _input_rows(layer: nn.Linear | nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """The inputs that each of the output rows is made of: [N, positions, inputs]."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(len(x), -1, x.shape[-1])
    else:
        kernel, padding, stride, dilation = layer.kernel_size, layer.padding, layer.stride, layer.dilation
        assert not isinstance(padding, str)
        if isinstance(layer, nn.Conv1d):  # a picture of one row
            x, kernel, padding = x[:, :, None], (1, *kernel), (0, *padding)
            stride, dilation = (1, *stride), (1, *dilation)
        rows = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride).transpose(1, 2)
    return rows


def _positions(n_images: int, n_positions: int, device: torch.device) -> Tensor:
    count = min(n_positions, max(1, ROWS // n_images))
    return torch.linspace(0, n_positions - 1, count, device=device).round().long()


def _least_squares(layer: nn.Linear | nn.Conv1d | nn.Conv2d, x: Tensor, target: Tensor) -> None:
    weight = layer.weight.flatten(1).T.double()  # [inputs, outputs]
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.double()[None]])
    square = weight.new_zeros(len(weight), len(weight))
    product = torch.zeros_like(weight)
    for start in range(0, len(x), CHUNK):
        rows = _input_rows(layer, x[start : start + CHUNK])
        rows = rows[:, _positions(len(x), rows.shape[1], x.device)].flatten(0, 1)
        if layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        square += (rows.T @ rows).double()
        product += (rows.T @ target[start : start + CHUNK].flatten(0, 1)).double()
    pull = RIDGE * square.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    square.diagonal().add_(pull)
    fitted = torch.linalg.solve(square, product + pull * weight)
    if layer.bias is not None:
        layer.bias.copy_(fitted[-1])
        fitted = fitted[:-1]
    layer.weight.copy_(fitted.T.reshape(layer.weight.shape))
