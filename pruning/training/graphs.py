"""Records a network's forward and backward pass on a card as CUDA graphs.

A small network's step is a few hundred operations of some microseconds each, which take Python several times as long to
start as the card to compute. A recorded pass is started as a whole.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruning.limits import is_out_of_memory
from pruning.models import in_one_line, kind_of
from pruning.notices import say

Forward = Callable[[Tensor], Tensor]


def record(model: nn.Module, x: Tensor, *, bf16: bool) -> Forward | None:
    """Record how a network in training computes logits, and their gradients, for inputs of the shape of `x`.

    Args:
        model: on a card, in training mode; its weights stay where they are, and are trained as ever.
        x: inputs [B, *shape] on that card; what is recorded takes others of the same shape and layout.
        bf16: whether to compute in bfloat16 where that is safe.

    Returns:
        A function from such inputs to logits FP32 [B, outputs] that autograd knows; None where the network cannot be
        recorded, say because its code looks at the values of tensors.
    """
    # Recording makes weights' gradients on a stream of its own first, of which torch would warn in every training.
    getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", lambda _: None)(False)
    random = torch.cuda.get_rng_state(x.device)
    try:
        with _unchanged(model), _nothing_freed(x.device):
            sample = (x.clone(memory_format=torch.preserve_format),)
            network = _Forward(model, bf16=bf16)
            recorded: Forward = torch.cuda.make_graphed_callables(network, sample, allow_unused_input=True)  # type: ignore[assignment]
        torch.cuda.set_rng_state(random, x.device)  # dropout goes on as if nothing had been recorded
        return recorded
    except Exception as error:  # whatever the network's code or CUDA raises
        if is_out_of_memory(error):
            raise
        # A recording that failed leaves the generator as if it still ran.
        torch.cuda.default_generators[x.device.index or 0].graphsafe_set_state(
            torch.Generator(x.device).graphsafe_get_state()
        )
        torch.cuda.set_rng_state(random, x.device)
        say(f"model: {kind_of(model)} is trained without a CUDA graph ({in_one_line(error)})")
        return None


class _Forward(nn.Module):
    """A network and its precision, so that the copy of it that has graphs is not the one that is kept."""

    def __init__(self, model: nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16

    def forward(self, x: Tensor) -> Tensor:
        # The cache holds weights as they were when the pass was recorded.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            logits: Tensor = self.model(x)
        return logits.float()


@contextmanager
def _nothing_freed(device: torch.device) -> Iterator[None]:
    """Keep the garbage collector out while the block runs: freeing an earlier recording would break a new one."""
    gc.collect()
    torch.cuda.synchronize(device)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give a network the state back that it had before the block ran it: the running moments of its normalisation."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        model.zero_grad(set_to_none=True)
