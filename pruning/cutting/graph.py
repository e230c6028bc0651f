"""Follows a network: its dependency graph, its output layer, and the module to blame where torch-pruning fails.

Source of the graph: Fang et al., "DepGraph: Towards Any Structural Pruning", 2023,
https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
import torch_pruning.dependency.graph as torch_pruning_graph
from torch import Tensor, nn
from torch_pruning.dependency.group import Group

from pruning.cutting.layouts import correct_layouts
from pruning.cutting.pruners import pruners
from pruning.cutting.recurrent import stood_in_for
from pruning.models import direct_layers, kind_of
from sensai_serve.errors import ModelError, first_line

VISITS, LEAST_VISITS = 16, 1000
"""Times that a walk may come to each operation, on average, and in all; that of a network that can be cut comes to
each about once."""


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


def output_layer(model: nn.Module, input_shape: Sequence[int]) -> str:
    """Name of the layer that makes the logits: the last convolution or linear layer that they come of.

    Raises:
        ModelError: there is none.
    """
    if not (layers := direct_layers(model.eval(), example(model, input_shape))):
        raise ModelError("model: has no convolution and no linear layer, nothing to cut")
    return layers[-1]


@contextmanager
def bounded_walks(model: nn.Module, graph: Any) -> Iterator[None]:
    """While the block runs, refuse networks in which torch-pruning's walk along coupled channels has no end in sight.

    It comes to an operation anew for every order of channels. Halves of heads that turn into each other, and keys that
    several heads share, make so many orders that it would walk for ever.

    Raises:
        ModelError: it came to operations too often.
    """
    most = max(LEAST_VISITS, VISITS * len(graph.module2node))

    class Bounded(Group):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self) >= most:
                raise ModelError(
                    f"model: torch-pruning cannot follow {kind_of(model)} (its channels are coupled in ever more "
                    "orders), expected channels that keep their order; `sensai bundle` serves it whole"
                )
            super().add_dep(dep, idxs)

    before, torch_pruning_graph.Group = torch_pruning_graph.Group, Bounded
    try:
        yield
    finally:
        torch_pruning_graph.Group = before


@contextmanager
def watching(model: nn.Module) -> Iterator[Callable[[], str]]:
    """While the block runs, name the module of `model` that is running; once one raised, the innermost of them."""
    kind, entered = kind_of(model), [""]

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
