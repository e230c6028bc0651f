"""A network that sees a smaller picture, or a shorter series, than it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruning.limits import is_out_of_memory
from pruning.models._outputs import in_one_line
from sensai_serve.errors import InputError
from sensai_serve.preprocess import InputSpec


class Downsampled(nn.Module):
    """A network behind the mean over every few neighbouring values of its input."""

    def __init__(self, network: nn.Module, factor: int, n_axes: int) -> None:
        """Take a network.

        Args:
            network: gives logits, for inputs a `factor` smaller on each spatial axis.
            factor: neighbouring values on a spatial axis that become one.
            n_axes: 1 for series [N, channels, steps], 2 for pictures [N, channels, H, W].
        """
        super().__init__()
        self.average = nn.AvgPool1d(factor) if n_axes == 1 else nn.AvgPool2d(factor)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [N, *shape] to logits [N, C]."""
        return self.network(self.average(x))  # type: ignore[no-any-return]


def downsample(
    model: nn.Module, factor: int, input_shape: tuple[int, ...], inputs: Sequence[InputSpec] = ()
) -> nn.Module:
    """`model` behind the mean over every `factor` neighbours on each spatial axis; `model` itself where that is 1.

    Args:
        model: gives logits [N, C], for inputs of several sizes.
        factor: neighbouring values that become one.
        input_shape: of one input: [channels, steps] or [channels, H, W].
        inputs: what the network takes, where that is not one FP32 tensor.

    Raises:
        InputError: the inputs have no such axes, these do not divide, or the network takes none that small.
    """
    if factor == 1:
        return model
    sides = input_shape[1:]
    if inputs or len(sides) not in (1, 2):
        got = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in inputs) or list(input_shape)
        raise InputError(f"downsample is {factor}, expected inputs of [channels, steps] or [channels, H, W], not {got}")
    if any(side % factor for side in sides):
        raise InputError(f"downsample is {factor}, expected a divisor of each side of inputs {list(input_shape)}")
    smaller = [input_shape[0], *(side // factor for side in sides)]
    try:
        with torch.no_grad():
            model(torch.zeros(2, *smaller, device=next(model.parameters()).device))
    except Exception as error:  # whatever the network's code raises
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"downsample is {factor}, expected a model that takes inputs of {smaller} too ({in_one_line(error)})"
        ) from None
    return Downsampled(model, factor, len(sides)).eval()
