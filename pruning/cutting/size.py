"""The size of a network: its multiply-accumulate operations and weights, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch_pruning.utils import op_counter

from pruning.cutting.graph import example, watching
from pruning.cutting.layers import RECURRENT
from pruning.limits import is_out_of_memory
from sensai_serve.errors import ModelError, first_line


@dataclass(frozen=True)
class Size:
    """Size of a network."""

    macs: int
    """Multiply-accumulate operations for one input."""
    parameters: int
    """Number of weights."""


def measure(model: nn.Module, input_shape: Sequence[int]) -> Size:
    """Size of a network, as torch-pruning counts it, for inputs of `input_shape` (without the batch axis).

    Raises:
        ModelError: the network does not run; names the module.
    """
    with watching(model) as running:
        try:
            with _own_counters():
                macs, parameters = op_counter.count_ops_and_params(model, example(model, input_shape))
        except Exception as error:  # whatever code makes of a size that it does not expect
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"model: {running()} does not run ({first_line(error)}), expected sizes that follow its layers"
            ) from None
    return Size(int(macs), int(parameters))


@contextmanager
def _own_counters() -> Iterator[None]:
    """While the block runs, torch-pruning counts layers that it miscounts, or refuses, as they are counted here."""
    counters: dict[type[nn.Module], Callable[..., None]] = {
        **dict.fromkeys(RECURRENT, _count_recurrent),
        nn.MultiheadAttention: _count_attention,
    }
    before = {kind: op_counter.MODULES_MAPPING[kind] for kind in counters}
    op_counter.MODULES_MAPPING.update(counters)
    try:
        yield
    finally:
        op_counter.MODULES_MAPPING.update(before)


def _count_recurrent(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Count every weight once for each step; the few products of a unit with itself are left out."""
    steps = output[0].data.numel() // output[0].data.shape[-1]
    layer.__flops__ += steps * sum(value.numel() for value in layer.parameters())


def _count_attention(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Count projections, once for each token, and the products of queries with keys and of weights with values."""
    out = output[0]  # the inputs may have been given by name, which hooks do not see
    steps = out.shape[-2 if layer.batch_first or out.ndim == 2 else 0]
    tokens = out.numel() // out.shape[-1]
    layer.__flops__ += tokens * (sum(value.numel() for value in layer.parameters()) + 2 * steps * layer.embed_dim)
