"""Cut channels out of a network, whatever its architecture: torch-pruning's dependency graph says what goes together.

Source of the graph: Fang et al., "DepGraph: Towards Any Structural Pruning", 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch_pruning as tp
from torch import Tensor, nn

from pruning.activations import PRUNABLE
from pruning.criteria import Floats
from sensai_serve.errors import ModelError

Cut = Mapping[str, tuple[int, ...]]
"""For each unit, by its name: the output channels of that layer that stay, ascending."""


@dataclass(frozen=True)
class Link:
    """Which channels of a layer are a unit's."""

    layer: str
    at: npt.NDArray[np.int64]
    """Positions among the layer's channels."""
    source: npt.NDArray[np.int64]
    """The unit's channel at each."""


@dataclass(frozen=True)
class Unit:
    """Channels of several layers that come and go together, named after one of the layers that make them."""

    layer: str
    channels: int
    blocks: int
    """Of a grouped convolution among them: each block loses the same channels. Else 1."""
    writers: tuple[Link, ...]
    """Layers that make the channels: links to their output channels."""
    readers: tuple[Link, ...]
    """Layers that are fed by the channels: links to their input channels."""


@dataclass(frozen=True)
class Size:
    """What one input costs, and what is kept."""

    macs: int
    parameters: int


def find_units(model: nn.Module, input_shape: Sequence[int]) -> list[Unit]:
    """All sets of coupled channels of `model`, the output layer's own excepted.

    Raises:
        ModelError: torch-pruning cannot follow the network, or there is nothing to cut.
    """
    graph = _graph(model, input_shape)
    names = {module: name for name, module in model.named_modules()}
    output = model.get_submodule(output_layer(model, input_shape))
    units = []
    for group in graph.get_all_groups(ignored_layers=[output], root_module_types=PRUNABLE):
        root = group[0].dep.target.module
        writers, readers, blocks = [], [], 1
        for item in group:
            module = item.dep.target.module
            if not isinstance(module, PRUNABLE):
                continue
            n_groups = getattr(module, "groups", 1)
            depthwise = n_groups > 1 and n_groups == module.out_channels == module.in_channels
            if n_groups > 1 and not depthwise:
                blocks = max(blocks, n_groups)
            link = Link(names[module], np.asarray(item.idxs, np.int64), np.asarray(item.root_idxs, np.int64))
            if depthwise or graph.is_in_channel_pruning_fn(item.dep.handler):
                readers.append(link)
            if depthwise or graph.is_out_channel_pruning_fn(item.dep.handler):
                writers.append(link)
        if readers:
            units.append(Unit(names[root], len(group[0].idxs), blocks, tuple(writers), tuple(readers)))
    if not units:
        raise ModelError(f"model: torch-pruning finds no channels in {type(model).__name__} that could be cut")
    order = list(names.values())
    return sorted(units, key=lambda unit: order.index(unit.layer))


def output_layer(model: nn.Module, input_shape: Sequence[int]) -> str:
    """Name of the layer that makes the logits: the last convolution or linear layer that runs.

    Raises:
        ModelError: there is none.
    """
    ran: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if isinstance(m, PRUNABLE)]
    try:
        with torch.no_grad():
            model.eval()(_example(model, input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise ModelError("model: has no convolution and no linear layer, nothing to cut")
    return ran[-1]


def unit_importance(unit: Unit, by_layer: Callable[[str], Floats]) -> Floats:
    """Importance of a unit's channels: the mean over the layers they feed (and over the positions of one channel).

    Args:
        unit: the coupled channels.
        by_layer: importance [input channels] of a layer.

    Returns:
        [unit.channels].
    """
    rows = []
    for link in unit.readers:
        count = np.bincount(link.source, minlength=unit.channels)
        total = np.bincount(link.source, by_layer(link.layer)[link.at], minlength=unit.channels)
        rows.append(total / np.maximum(count, 1))
    importance = np.mean(rows, axis=0)
    if unit.blocks > 1:
        importance = np.tile(importance.reshape(unit.blocks, -1).mean(axis=0), unit.blocks)
    return np.asarray(importance, np.float64)


def cut_share(units: Sequence[Unit], importance: Mapping[str, Floats], share: float) -> Cut:
    """Cut the least important `share` (0 to below 1) of the channels of every unit.

    Raises:
        ModelError: a layer would lose all its channels.
    """
    kept = {}
    for unit in units:
        per_block = unit.channels // unit.blocks
        keep = per_block - round(per_block * share)
        if keep < 1:
            raise ModelError(
                f"cut: layer {unit.layer} would lose all {unit.channels} channels at a share of {share:.3g}, "
                "expected a smaller cut"
            )
        order = np.argsort(-importance[unit.layer][:per_block], kind="stable")[:keep]
        kept[unit.layer] = _spread(np.sort(order), unit)
    return kept


def cut_below(units: Sequence[Unit], importance: Mapping[str, Floats], threshold: float) -> Cut:
    """Cut every channel whose importance is below `threshold`.

    Raises:
        ModelError: a layer would lose all its channels.
    """
    kept = {}
    for unit in units:
        keep = np.flatnonzero(importance[unit.layer][: unit.channels // unit.blocks] >= threshold)
        if not len(keep):
            raise ModelError(
                f"cut: layer {unit.layer} would lose all {unit.channels} channels, none has an importance of "
                f"{threshold:.3g} (its highest is {importance[unit.layer].max():.3g}), expected a lower threshold"
            )
        kept[unit.layer] = _spread(keep, unit)
    return kept


def kept_outputs(units: Sequence[Unit], cut: Cut) -> dict[str, list[int]]:
    """For every layer that makes channels of a unit, the positions of the output channels that stay, ascending."""
    kept: dict[str, list[int]] = {}
    for unit in units:
        for link in unit.writers:
            stays = link.at[np.isin(link.source, cut[unit.layer])]
            kept[link.layer] = sorted({*kept.get(link.layer, ()), *map(int, stays)})
    return kept


def apply_cut(model: nn.Module, cut: Cut, input_shape: Sequence[int]) -> nn.Module:
    """A copy of `model` with only the channels of `cut` left.

    Raises:
        ModelError: the cut is not of this network, or leaves a layer without channels.
    """
    model = copy.deepcopy(model)
    graph = _graph(model, input_shape)
    for name, kept in cut.items():
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            raise ModelError(f"cut: the model has no layer {name}") from None
        pruner = graph.get_pruner_of_module(layer)
        n_channels = None if pruner is None else graph.get_out_channels(layer)
        if n_channels is None or not kept or max(kept) >= n_channels:
            raise ModelError(f"cut: layer {name} has {n_channels} channels, expected some of them to stay, not {kept}")
        if gone := sorted(set(range(n_channels)) - set(kept)):
            graph.get_pruning_group(layer, pruner.prune_out_channels, gone).prune(record_history=False)
    return model


def compose(first: Mapping[str, Sequence[int]], second: Cut) -> Cut:
    """The one cut that is `first`, then `second` of what `first` left.

    Args:
        first: by layer, at least those of `second` that lost outputs: a cut, or its `kept_outputs`.
        second: of all units that are left.
    """
    return {name: tuple(first[name][i] for i in kept) if name in first else kept for name, kept in second.items()}


def measure(model: nn.Module, input_shape: Sequence[int]) -> Size:
    """MACs for one input, and parameters."""
    macs, parameters = tp.utils.count_ops_and_params(model, _example(model, input_shape))
    return Size(int(macs), int(parameters))


def search_share(
    size_at: Callable[[float], float], budget: float, *, steps: int = 12, at_least: float = 0.0, unit: str = "MACs"
) -> float:
    """The smallest share to cut whose network is within `budget`, by bisection.

    Args:
        size_at: size (MACs, parameters, microseconds) of the network with that share of channels cut.
        budget: the most that is allowed.
        steps: halvings of the interval.
        at_least: the smallest share to look at.
        unit: of the size.

    Raises:
        ModelError: even the largest cut is above the budget; says the smallest size that can be reached.
    """
    if (smallest := size_at(at_least)) <= budget:
        return at_least
    low, high = at_least, at_least
    for share in (numerator / 32 for numerator in range(31, 0, -1) if numerator / 32 > at_least):
        with suppress(ModelError):  # a layer would vanish
            high, smallest = share, size_at(share)
            break
    if smallest > budget:
        raise ModelError(
            f"cut: the smallest network that can be reached has {smallest:,.0f} {unit}, expected at most {budget:,.0f}"
        )
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if size_at(middle) <= budget else (middle, high)
    return high


def _spread(kept: npt.NDArray[np.int64], unit: Unit) -> tuple[int, ...]:
    per_block = unit.channels // unit.blocks
    return tuple(int(block * per_block + i) for block in range(unit.blocks) for i in kept)


def _example(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    parameter = next(model.parameters(), None)
    return torch.zeros(1, *input_shape, device=None if parameter is None else parameter.device)


def _graph(model: nn.Module, input_shape: Sequence[int]) -> Any:
    model.eval()
    try:
        # Tracing follows gradients, so the input must have one: the first layers of a network may be fixed.
        with torch.enable_grad():
            example = _example(model, input_shape).requires_grad_()
            return tp.DependencyGraph().build_dependency(model, (example,), verbose=False)
    except Exception as error:  # the tracer's own failures are of any kind
        raise ModelError(f"model: torch-pruning cannot follow {type(model).__name__} ({error})") from None
