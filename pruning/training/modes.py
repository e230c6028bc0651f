"""Training mode of networks that give more than logits in it: their auxiliary heads are left out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pruning.limits import is_out_of_memory
from pruning.models import in_one_line, kind_of
from pruning.notices import say
from sensai_serve.errors import ModelError


def into_training(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Put `model` into training mode so that it still gives one tensor [N, outputs].

    Where it gives more in training mode, or raises (auxiliary heads, which are not cut along), modules that contain
    others are told that they are not in training, from the outermost inwards, until it gives one tensor. Their layers,
    normalisation and dropout among them, stay in training.

    Args:
        model: changed in place; inputs [N, *shape] to logits in evaluation mode.
        shape: of one input.

    Raises:
        ModelError: it does not run in training mode, or never gives one tensor.
    """
    model.train()
    out = _output(model, shape)
    if _is_logits(out):
        return
    got = f"raises ({in_one_line(out)})" if isinstance(out, Exception) else f"gives a {type(out).__name__}"
    for module in model.modules():
        if any(True for _ in module.children()):
            module.training = False
            if _is_logits(_output(model, shape)):
                say(f"model: {kind_of(model)} {got} in training mode; it is trained without auxiliary heads")
                return
    raise ModelError(f"model: {kind_of(model)} {got} in training mode, expected logits [N, C] as in evaluation mode")


def _is_logits(out: Any) -> bool:
    return isinstance(out, Tensor) and out.ndim == 2


def _output(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """What a copy of the network gives for two inputs, on shapes alone where it runs so; or what it raises."""
    device = next(model.parameters()).device
    failure: Exception | None = None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for where in (torch.device("meta"), device):  # one that looks at values, or makes tensors, needs numbers
            try:
                return copy.deepcopy(model).to(where)(torch.zeros(2, *shape, device=where))
            except Exception as error:  # whatever the network's code raises
                if is_out_of_memory(error):
                    raise
                failure = error
    return failure
