"""Finds what can be cut out of a network of any architecture: groups of channels that only go together."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pruning.criteria import Doubles, Member
from pruning.cutting.cut import Cut, apply_cut
from pruning.cutting.graph import bounded_walks, dependency_graph, example, output_layer, watching
from pruning.cutting.layers import MAKERS, PRUNABLE, count_outputs, is_depthwise
from pruning.models import ClassLogits, kind_of
from sensai_serve.errors import ModelError, first_line

PART_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Numbers of equal parts, attention heads mostly, that are tried for a group."""
HEAD_TOLERANCE = 1e-3
"""The largest difference, relative to what a head does, between a network without it and one that does not read it."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that can only be cut together, named after one of the layers that make them."""

    layer: str
    channels: int
    """Number of channels."""
    parts: int
    """Equal parts that lose the same channels: the groups of a convolution, the heads of an attention. Else 1."""
    producers: tuple[Member, ...]
    """Layers that make the channels, and which of their output channels these are."""
    consumers: tuple[Member, ...]
    """Layers that read the channels, and which of their input channels these are."""
    norms: tuple[Member, ...] = ()
    """Batch and layer normalisations that scale the channels."""
    block: int = 1
    """Channels side by side of which all or none stay: those of an attention head whose size is written in code."""


def find_channel_groups(model: nn.Module, input_shape: Sequence[int]) -> list[ChannelGroup]:
    """All groups of coupled channels of `model`, except the output layer's own.

    Args:
        model: inputs [N, *input_shape] to logits.
        input_shape: shape of one input, without the batch axis.

    Raises:
        ModelError: torch-pruning cannot follow the network, or there is nothing to cut.
    """
    graph = dependency_graph(model, input_shape)
    names = {module: name for name, module in model.named_modules()}
    output = model.get_submodule(output_layer(model, input_shape))
    with bounded_walks(model, graph):
        walked = list(graph.get_all_groups(ignored_layers=[output], root_module_types=MAKERS))
    groups = []
    for dependencies in walked:
        root = dependencies[0].dep.target.module
        producers, consumers, norms, parts = [], [], [], 1
        for item in dependencies:
            module = item.dep.target.module
            if isinstance(module, NORMS) and None not in item.root_idxs:
                norms.append(_member(names[module], item))
            if not isinstance(module, MAKERS) or isinstance(module, ClassLogits):
                continue
            depthwise = is_depthwise(module)
            if not depthwise:
                parts = max(parts, getattr(module, "groups", 1))
            member = _member(names[module], item)
            if depthwise or (graph.is_in_channel_pruning_fn(item.dep.handler) and isinstance(module, PRUNABLE)):
                consumers.append(member)
            if depthwise or graph.is_out_channel_pruning_fn(item.dep.handler):
                producers.append(member)
        if consumers:
            channels = len(dependencies[0].idxs)
            groups.append(ChannelGroup(names[root], channels, parts, tuple(producers), tuple(consumers), tuple(norms)))
    if not groups:
        raise ModelError(
            f"model: torch-pruning finds no channels in {kind_of(model)} that could be cut, expected layers that "
            f"gradients pass: it sees none before {names[output]}"
        )
    order = list(names.values())
    return _cuttable(model, sorted(groups, key=lambda group: order.index(group.layer)), input_shape)


def _member(layer: str, item: Any) -> Member:
    """One layer in an entry of torch-pruning's `Group` as a `Member`. Raises ModelError where it lost the channels."""
    if None in item.root_idxs:
        raise ModelError(
            f"model: torch-pruning cannot follow the channels of {layer}, expected channels that keep their order; "
            "`sensai bundle` serves the network whole"
        )
    return Member(layer, np.asarray(item.idxs, np.int64), np.asarray(item.root_idxs, np.int64))


def _cuttable(model: nn.Module, groups: list[ChannelGroup], input_shape: Sequence[int]) -> list[ChannelGroup]:
    """The groups that can be cut, each in as many equal parts as the network needs.

    Channels that a network reshapes to sizes written in its code cannot be cut, or, as the heads of an attention, only
    by the same number in each of some equal parts. The graph does not show that, a trial does: on shapes alone, without
    numbers, so that large networks cost no more than small ones.
    """
    bare = copy.deepcopy(model).to("meta")
    try:
        bare.eval()(example(bare, input_shape))
    except Exception:  # a network that makes tensors of its own needs numbers after all
        bare = model
    if not _trial(bare, groups, input_shape):
        return groups
    for alike in (True, False):  # first one for all that look the same, as the blocks of a transformer do
        parts, reason = _parts_of(bare, groups, input_shape, alike=alike)
        sizes = _head_sizes(model, bare, groups, parts, input_shape, alike=alike)
        found = [
            replace(group, block=size) if size > 1 else replace(group, parts=n)
            for group, n, size in zip(groups, parts, sizes, strict=True)
            if n or size > 1
        ]
        if found and not (reason := _trial(bare, found, input_shape)):
            return found
    raise ModelError(f"model: no channels of {kind_of(model)} can be cut: {reason}")


def _parts_of(
    bare: nn.Module, groups: Sequence[ChannelGroup], input_shape: Sequence[int], *, alike: bool
) -> tuple[list[int], str]:
    """The number of equal parts in which each group can be cut, 0 where it cannot, and the first reason why not."""
    keys = [_looks(bare, group) if alike else group.layer for group in groups]
    known: dict[Hashable, int] = {}
    reason = ""
    for group, key in zip(groups, keys, strict=True):
        for factor in () if key in known else PART_COUNTS:
            if group.channels % (group.parts * factor) == 0:
                failure = _trial(bare, [replace(group, parts=group.parts * factor)], input_shape)
                reason = reason or failure
                if not failure:
                    known[key] = group.parts * factor
                    break
        known.setdefault(key, 0)
    return [known[key] for key in keys], reason


def _head_sizes(
    model: nn.Module,
    bare: nn.Module,
    groups: Sequence[ChannelGroup],
    parts: Sequence[int],
    input_shape: Sequence[int],
    *,
    alike: bool,
) -> list[int]:
    """The number of channels of one head for each group that loses whole heads; 1 for all others.

    A network that writes the size of a head in its code runs without as many channels, whichever they are. They are a
    head if it then computes what the whole network does when nothing reads them.
    """
    known: dict[Hashable, int] = {}
    found = []
    for group, n in zip(groups, parts, strict=True):
        key = _looks(bare, group) if alike else group.layer
        if key not in known:
            per_part = group.channels // group.parts
            sizes = [size for size in range(2, per_part // 2 + 1) if per_part % size == 0 == n % size]
            tried = (replace(group, block=size) for size in sizes if n != group.parts)
            known[key] = next((g.block for g in tried if _is_head(model, bare, g, input_shape)), 1)
        found.append(known[key])
    return found


def _is_head(model: nn.Module, bare: nn.Module, group: ChannelGroup, input_shape: Sequence[int]) -> bool:
    """Whether a network without the first block of each part computes what it does when nothing reads the block."""
    if _trial(bare, [group], input_shape):
        return False
    place = np.arange(group.channels) % (group.channels // group.parts)
    small = apply_cut(model, {group.layer: tuple(map(int, np.flatnonzero(place >= group.block)))}, input_shape)
    unread = copy.deepcopy(model).eval()
    for member in group.consumers:
        layer = unread.get_submodule(member.layer)
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight[:, member.positions[place[member.channels] < group.block]] = 0
    zeros = example(model, input_shape)
    x = torch.randint(0, 2, zeros.shape, generator=torch.Generator().manual_seed(0)).to(zeros)  # tokens, or readings
    with torch.no_grad():
        expected, whole = unread(x), model.eval()(x)
        off, moved = (small(x) - expected).abs().max(), (whole - expected).abs().max()
    return bool(off <= HEAD_TOLERANCE * moved)


def _looks(bare: nn.Module, group: ChannelGroup) -> Hashable:
    layers = [member.layer for member in (*group.producers, *group.consumers)]
    shapes = [tuple(weight.shape) for name in layers for weight in bare.get_submodule(name).parameters()]
    return group.channels, group.parts, tuple(shapes)


def _trial(bare: nn.Module, groups: Sequence[ChannelGroup], input_shape: Sequence[int]) -> str:
    """Why a network does not run without the first block, or half, of each part of `groups`; empty if it does."""
    n_outputs = bare.eval()(example(bare, input_shape)).shape
    for half in (False, True):
        cut = {}
        for group in groups:
            per_part = group.channels // group.parts
            place = np.arange(group.channels) % per_part
            gone = max(per_part // group.block // 2, 1) * group.block if half else group.block
            stay = np.flatnonzero(place < per_part - gone if half else place >= gone)
            if len(stay):
                cut[group.layer] = tuple(map(int, stay))
        try:
            small = apply_cut(bare, cut, input_shape)
        except (IndexError, AssertionError, RuntimeError) as error:  # channels that torch-pruning takes for others
            return f"some of what {groups[0].layer} makes cannot be cut ({first_line(error)})"
        for name, kept in cut.items():
            if count_outputs(small.get_submodule(name)) != len(kept):
                return f"{name} loses further channels along with some of its own"
        with watching(small) as running:
            try:
                shape = small(example(small, input_shape)).shape
            except Exception as error:  # whatever code makes of a size that it does not expect
                return f"{running()} does not run without some of what {groups[0].layer} makes ({first_line(error)})"
        if shape != n_outputs:
            return f"without some of what {groups[0].layer} makes there are other outputs"
    return ""


def alike_in_parts(group: ChannelGroup, importance: Doubles) -> Doubles:
    """Importance [group.channels], each channel's replaced by the mean over the channels that it stays or goes with.

    These are its block, and the channels at the same place of the group's other parts.
    """
    if group.parts == group.block == 1:
        return importance
    of_blocks = importance.reshape(group.parts, -1, group.block).mean(axis=(0, 2))
    return np.tile(np.repeat(of_blocks, group.block), group.parts)


def kept_outputs(groups: Sequence[ChannelGroup], cut: Cut) -> dict[str, list[int]]:
    """The output channels that stay, ascending, of every layer that makes channels of a group; by layer."""
    kept: dict[str, list[int]] = {}
    for group in groups:
        for member in group.producers:
            stays = member.positions[np.isin(member.channels, cut[group.layer])]
            kept[member.layer] = sorted({*kept.get(member.layer, ()), *map(int, stays)})
    return kept
