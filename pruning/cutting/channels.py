"""Cut channels out of a network, whatever its architecture: the dependency graph says what goes together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch_pruning as tp
from torch import nn

from pruning.criteria import Floats
from pruning.cutting.graph import dependency_graph, example, first_line, watching
from pruning.cutting.profile import PRUNABLE
from sensai_serve.errors import ModelError

Cut = Mapping[str, tuple[int, ...]]
"""For each unit, by its name: the output channels of that layer that stay, ascending."""
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Numbers of equal parts, attention heads mostly, that channels are tried to be cut in."""


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
    """Equal parts that lose the same channels: groups of a convolution, heads of an attention. Else 1."""
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
    graph = dependency_graph(model, input_shape)
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
        raise ModelError(
            f"model: torch-pruning finds no channels in {type(model).__name__} that could be cut, expected layers that "
            f"gradients pass: it sees none before {names[output]}"
        )
    order = list(names.values())
    return _cuttable(model, sorted(units, key=lambda unit: order.index(unit.layer)), input_shape)


def _cuttable(model: nn.Module, units: list[Unit], input_shape: Sequence[int]) -> list[Unit]:
    """Those of `units` that the network still runs without some channels of, in blocks of as many as it needs.

    What a network reshapes to sizes that are written in its code cannot be cut, or, as the heads of an attention, only
    by the same number in each of some equal parts. The graph does not show that, a trial does: on shapes alone, without
    numbers, so that large networks cost no more than small ones.
    """
    bare = copy.deepcopy(model).to("meta")
    try:
        bare.eval()(example(bare, input_shape))
    except Exception:  # a network that makes tensors of its own needs numbers after all
        bare = model
    if not _trial(bare, units, input_shape):
        return units
    for alike in (True, False):  # first one for all that look the same, as the blocks of a transformer do
        blocks, reason = _blocks_of(bare, units, input_shape, alike=alike)
        found = [replace(unit, blocks=n) for unit, n in zip(units, blocks, strict=True) if n]
        if found and not (reason := _trial(bare, found, input_shape)):
            return found
    raise ModelError(f"model: no channels of {type(model).__name__} can be cut: {reason}")


def _blocks_of(
    bare: nn.Module, units: Sequence[Unit], input_shape: Sequence[int], *, alike: bool
) -> tuple[list[int], str]:
    """In how many equal parts each unit can be cut, 0 where it cannot, and the first reason for which one cannot."""
    keys = [_looks(bare, unit) if alike else unit.layer for unit in units]
    known: dict[Hashable, int] = {}
    reason = ""
    for unit, key in zip(units, keys, strict=True):
        for factor in () if key in known else BLOCKS:
            if unit.channels % (unit.blocks * factor) == 0:
                failure = _trial(bare, [replace(unit, blocks=unit.blocks * factor)], input_shape)
                reason = reason or failure
                if not failure:
                    known[key] = unit.blocks * factor
                    break
        known.setdefault(key, 0)
    return [known[key] for key in keys], reason


def _looks(bare: nn.Module, unit: Unit) -> Hashable:
    layers = [link.layer for link in (*unit.writers, *unit.readers)]
    shapes = [tuple(weight.shape) for name in layers for weight in bare.get_submodule(name).parameters()]
    return unit.channels, unit.blocks, tuple(shapes)


def _trial(bare: nn.Module, units: Sequence[Unit], input_shape: Sequence[int]) -> str:
    """Why the network does not run without the first channel of each block of `units`; empty if it does."""
    cut = {}
    for unit in units:
        channels = np.arange(unit.channels)
        kept = channels[channels % (unit.channels // unit.blocks) > 0]
        if len(kept):
            cut[unit.layer] = tuple(map(int, kept))
    n_outputs = bare.eval()(example(bare, input_shape)).shape
    small = apply_cut(bare, cut, input_shape)
    with watching(small) as running:
        try:
            shape = small(example(small, input_shape)).shape
        except Exception as error:  # whatever code makes of a size that it does not expect
            return f"{running()} does not run without some of what {units[0].layer} makes ({first_line(error)})"
    return "" if shape == n_outputs else f"without some of what {units[0].layer} makes there are other outputs"


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
            model.eval()(example(model, input_shape))
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
    graph = dependency_graph(model, input_shape)
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
    macs, parameters = tp.utils.count_ops_and_params(model, example(model, input_shape))
    return Size(int(macs), int(parameters))
