"""The order of a picture's numbers in memory during a training."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pruning.limits import is_out_of_memory


def suited_layout(model: nn.Module, shape: tuple[int, ...], *, bf16: bool) -> torch.memory_format:
    """Channels last where that is faster and `model` runs so: pictures on a CPU, or in bfloat16 on a card.

    A network whose code asks how its tensors lie in memory, as ``x.view(len(x), -1)`` does, does not run so.

    Args:
        model: in the mode that it will run in; not changed.
        shape: of one input.
        bf16: whether it will compute in bfloat16.
    """
    device = next(model.parameters()).device
    if len(shape) != 3 or not (bf16 or device.type == "cpu"):
        return torch.contiguous_format
    last = torch.channels_last
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = torch.zeros(2, *shape, device=device).contiguous(memory_format=last)
            copy.deepcopy(model).to(memory_format=last)(x)  # type: ignore[call-overload]
    except Exception as error:  # whatever the network's code raises
        if is_out_of_memory(error):
            raise
        return torch.contiguous_format
    return last
