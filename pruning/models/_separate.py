"""Takes the one tensor that networks are trained, profiled and cut with apart, into the inputs that a network takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sensai_serve.errors import ModelError
from sensai_serve.preprocess import InputSpec

_TYPES = {
    "FP32": torch.float32,
    "FP16": torch.float16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


class Separate(nn.Module):
    """One FP32 tensor in which inputs lie side by side (`pruning.data._packed`) to these inputs.

    What is apart already, as an exported graph has it, is passed on. For `torch.fx` this is a leaf, so that a traced
    network takes both too.
    """

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """[N, *shape] of the one input, or [N, numbers of all], to a tensor [N, ...] of each input's datatype."""
        if isinstance(x, tuple):
            return x
        if len(self.specs) == 1:
            return (x.to(_TYPES[self.specs[0].dtype]),)
        at, parts = 0, []
        for spec in self.specs:
            size = math.prod(spec.shape)
            parts.append(x[:, at : at + size].reshape(-1, *spec.shape).to(_TYPES[spec.dtype]))
            at += size
        return tuple(parts)


def keywords_of(model: nn.Module, name: str, specs: Sequence[InputSpec]) -> tuple[str, ...] | None:
    """The names by which a network's ``forward`` takes its inputs; None where it takes them in their order.

    Args:
        model: the network.
        name: what it is called in messages.
        specs: its inputs.

    Raises:
        ModelError: it takes neither so many inputs nor inputs of these names.
    """
    names = tuple(spec.name for spec in specs)
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if set(names) <= by_name:
        return names
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    known = set(names) & by_name
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) or (len(placed) >= len(specs) and not known):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return names
    takes = ", ".join(p.name for p in parameters) or "nothing"
    raise ModelError(f"model: forward of {name} takes {takes}, expected {', '.join(names)}, the inputs of the data")
