"""Drops whole residual blocks: in a deep thin network the cost is the number of operators, not their width.

A block is a part of the network's graph that goes around an identity skip: one operand of an addition is made from the
other. Without it the addition is its skip. The graph says where blocks are, so no architecture is known by name.

Source of the idea: Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", 2016,
https://arxiv.org/abs/1605.06431.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pruning.criteria import Doubles
from pruning.cutting.profile import add_by_label, backward_over
from pruning.data import Dataset, Labels, examples_of_each
from pruning.models import Separate, kind_of
from sensai_serve.errors import ModelError, first_line

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (F.relu, torch.relu, "relu", "relu_")


@dataclass(frozen=True)
class Block:
    """A part of a traced network that may be left out."""

    name: str
    """Name of its first layer, which is in no other block."""
    layers: tuple[str, ...]
    """Names of its layers that have weights, in the order in which they run, then of bare parameters."""
    skip: fx.Node
    """The operand of the addition that the block goes around."""
    branch: fx.Node
    """The operand of the addition that the block makes."""
    addition: fx.Node
    inside: tuple[fx.Node, ...]
    """Nodes that are of no use without the block, in the order in which they run."""


def find_blocks(network: fx.GraphModule, input_shape: Sequence[int]) -> list[Block]:
    """The innermost blocks of a traced network, in the order in which they run."""
    shapes = _shapes(network, input_shape)
    before: dict[fx.Node, set[fx.Node]] = {}
    blocks = []
    for node in network.graph.nodes:
        before[node] = {node}.union(*(before[given] for given in node.all_input_nodes))
        operands = [argument for argument in node.args if isinstance(argument, fx.Node)]
        if node.target not in ADDITIONS or len(operands) != 2:
            continue
        for skip, branch in (operands, operands[::-1]):
            if skip in before[branch] and skip is not branch and shapes.get(skip) == shapes.get(node):
                inside = _only_for(node, before[branch] - {skip})
                if layers := _layers(network, inside):
                    blocks.append(Block(layers[0], layers, skip, branch, node, inside))
    return [block for block in blocks if not any(other.addition in block.inside for other in blocks)]


def trace(model: nn.Module) -> fx.GraphModule:
    """The graph of `model`, on a copy of its layers, under their names.

    Raises:
        ModelError: it has control flow that depends on values; names the module.
    """
    if isinstance(model, fx.GraphModule):
        return copy.deepcopy(model)
    model = copy.deepcopy(model).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever the code of the network makes of a value that is not there
        where = f"{kind_of(model)} in {tracer.failed}" if tracer.failed else kind_of(model)
        raise ModelError(
            f"model: torch.fx cannot follow {where} ({first_line(error)}), expected no control flow that depends on "
            "values; without --depth it need not"
        ) from None
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Identity):
            node.replace_all_uses_with(node.args[0])  # so that a skip which is one is seen to be its input
            graph.erase_node(node)
    return fx.GraphModule(model, graph, class_name=kind_of(model))


def remove_blocks(model: nn.Module, names: Sequence[str], input_shape: Sequence[int]) -> nn.Module:
    """A copy of `model` without the blocks of those names.

    Raises:
        ModelError: the network cannot be traced, or has no such block.
    """
    network, left = trace(model), set(names)
    while left:  # a block that holds others is one of the innermost only when they are gone
        found = [block for block in find_blocks(network, input_shape) if block.name in left]
        if not found:
            raise ModelError(f"cut: the model has no residual block {min(left)}")
        for block in reversed(found):  # the skip of a later one is made by an earlier one
            _remove(network.graph, block, network)
        left -= {block.name for block in found}
        network = fx.GraphModule(network, network.graph, class_name=type(network).__name__)
    for module in network.modules():
        if getattr(module, "inplace", False):  # it would now write over a skip that others may read
            module.inplace = False  # type: ignore[assignment]
    return network


def block_importance(
    network: fx.GraphModule,
    blocks: Sequence[Block],
    dataset: Dataset,
    indices: Labels,
    *,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[str, Doubles]:
    """First-order change of the loss if a block's output were zero: mean over images of |sum of output x gradient|.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, with the block as the unit.

    Args:
        network: gives logits [N, C]; not changed.
        blocks: the network's blocks.
        dataset: where the images come from.
        indices: [N] training images, some of every class.
        on_step: called with images done and N.

    Returns:
        For each block, by its name, the change [C] for each class.
    """
    device = next(network.parameters()).device
    name_of = {block.branch: block.name for block in blocks}
    changes: dict[str, Tensor] = {}
    sums = {block.name: torch.zeros(dataset.n_classes, dtype=torch.float64, device=device) for block in blocks}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            name = name_of.get(node)
            if name is not None and value.requires_grad:
                kept = value.detach().clone()  # the addition may be in place

                def take(gradient: Tensor, name: str = name, kept: Tensor = kept) -> None:
                    changes[name] = (kept * gradient).flatten(1).sum(dim=1).abs()

                value.register_hook(take)
            return value

    def accumulate(label: Tensor) -> None:
        for name, change in changes.items():
            add_by_label(sums[name], 0, label, change.double())
        changes.clear()

    backward_over(Watch(network).run, dataset, indices, device, accumulate, on_step)
    counts = np.maximum(examples_of_each(dataset.y[indices], dataset.n_classes), 1)
    return {name: total.cpu().numpy() / counts for name, total in sums.items()}


def _remove(graph: fx.Graph, block: Block, network: fx.GraphModule) -> None:
    addition, skip = block.addition, block.skip
    after = [user for user in addition.users if _is_relu(user, network)]
    addition.replace_all_uses_with(skip)
    for node in (addition, *reversed(block.inside)):
        graph.erase_node(node)
    if _is_relu(skip, network):
        for node in after:  # the ReLU of a ReLU is that ReLU
            node.replace_all_uses_with(skip)
            graph.erase_node(node)


def _is_relu(node: fx.Node, network: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), nn.ReLU)
    return node.target in RELUS


def _only_for(addition: fx.Node, candidates: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes of `candidates` that only `addition` needs, directly or through others."""
    found: list[fx.Node] = []
    dead = {addition}
    for node in reversed(list(addition.graph.nodes)):
        if node in candidates and node.op != "placeholder" and all(user in dead for user in node.users):
            dead.add(node)
            found.append(node)
    return tuple(reversed(found))


def _layers(network: fx.GraphModule, inside: Sequence[fx.Node]) -> tuple[str, ...]:
    """Names of layers and parameters that have weights (not norms and biases alone) and run only `inside`."""
    elsewhere = {node.target for node in network.graph.nodes if node not in inside}
    layers: list[str] = []
    for node in sorted(inside, key=lambda node: node.op == "get_attr"):  # bare parameters last: no names for a block
        if node.target in elsewhere or node.target in layers:
            continue
        if node.op == "call_module":
            weights = list(network.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            weights = [value for name, value in network.named_parameters() if name == node.target]
        else:
            continue
        if any(weight.ndim > 1 for weight in weights):
            layers.append(str(node.target))
    return tuple(layers)


def _shapes(network: fx.GraphModule, input_shape: Sequence[int]) -> dict[fx.Node, torch.Size]:
    shapes = {}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if isinstance(value, Tensor):
                shapes[node] = value.shape
            return value

    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with torch.no_grad():
        Watch(network.eval()).run(torch.zeros(1, *input_shape, device=device))
    return shapes


class _Tracer(fx.Tracer):
    """A tracer that remembers the innermost module that could not be followed."""

    failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node: those of torch, and what takes inputs apart, which exported graphs do not."""
        return isinstance(m, Separate) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise
