"""Follows a network: torch-pruning's dependency graph of it, and the module to blame where that fails.

Source of the graph: Fang et al., "DepGraph: Towards Any Structural Pruning", 2023,
https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pruning.cutting.layouts import correct_layouts
from pruning.cutting.pruners import pruners
from pruning.cutting.recurrent import stood_in_for
from sensai_serve.errors import ModelError


def dependency_graph(model: nn.Module, input_shape: Sequence[int]) -> Any:
    """The dependency graph of `model`: which channels of which layers can only be cut together.

    Raises:
        ModelError: torch-pruning cannot follow the network; names the module.
    """
    model.eval()
    with watching(model) as running:
        try:
            # Tracing follows gradients, so the input must have one: the first layers of a network may be fixed.
            with torch.enable_grad():
                inputs = example(model, input_shape).requires_grad_()
                model(inputs)  # what is wrong with it itself is seen here, before the tracer tries it in other ways
                with stood_in_for(model):
                    graph = tp.DependencyGraph().build_dependency(
                        model, inputs, forward_fn=nn.Module.__call__, customized_pruners=pruners(model), verbose=False
                    )
                correct_layouts(graph)
                return graph
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the tracer's own failures are of any kind
            raise ModelError(
                f"model: torch-pruning cannot follow {running()} ({first_line(error)}), expected operators that it "
                "knows, each run the same way for every input"
            ) from None


@contextmanager
def watching(model: nn.Module) -> Iterator[Callable[[], str]]:
    """While the block runs, name the module of `model` that is running; once one raised, the innermost of them."""
    kind, entered = type(model).__name__, [""]

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: entered.append(name)

    def leave(*_: Any) -> None:
        entered.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name)))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield lambda: f"{kind} in {entered[-1]}" if entered[-1] else kind
    finally:
        for hook in hooks:
            hook.remove()


def example(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """An input [1, *input_shape] of zeros, on the network's device."""
    parameter = next(model.parameters(), None)
    return torch.zeros(1, *input_shape, device=None if parameter is None else parameter.device)


def first_line(error: BaseException) -> str:
    """First line of an error's message, at most 200 characters; its type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
