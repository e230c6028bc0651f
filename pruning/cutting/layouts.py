"""Tells torch-pruning where channels lie: it takes them for axis 1, and theirs is the last axis of a sequence.

Where a tensor [N, steps, channels] is flattened, a channel's places are a row apart; where steps or pixels are sliced
off, no channel is lost. The shapes that autograd keeps say which it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch_pruning import ops
from torch_pruning.dependency.shape_infer import infer_in_channels_recursively, infer_out_channels_recursively

from pruning.cutting.layers import CONVOLUTIONS


def correct_layouts(graph: Any) -> None:
    """Correct which channel is which behind the flattenings and slices of a dependency graph.

    Args:
        graph: a `tp.DependencyGraph` that has been built; changed in place.
    """
    for node in list(graph.module2node.values()):
        sizes = tuple(getattr(node.grad_fn, "_saved_self_sym_sizes", ()))
        if len(sizes) < 3:
            continue
        if node.type == ops.OPTYPE.RESHAPE:
            _correct_flattening(graph, node, sizes)
        elif node.type == ops.OPTYPE.SLICE and _sliced_axis(node, len(sizes)) != _channel_axis(graph, node, sizes):
            _pin(node, None, None)


def _correct_flattening(graph: Any, node: Any, sizes: Sequence[int]) -> None:
    read = [infer_in_channels_recursively(graph, after, [0]) for after in node.outputs]
    axis = _channel_axis(graph, node, sizes)
    if axis is None or math.prod(sizes[1:]) not in read or sizes[axis] in read:
        return
    before = math.prod(sizes[1:axis])
    after = math.prod(sizes[axis + 1 :])
    source = node.inputs[0]

    def channels() -> int:
        return int(infer_out_channels_recursively(graph, source, [0]))

    _pin(node, _Flattened(before, after, channels), _Unflattened(after, channels))


def _channel_axis(graph: Any, node: Any, sizes: Sequence[int]) -> int | None:
    """The axis of a node's input that its channels lie on; None where no axis has as many places."""
    channels = infer_out_channels_recursively(graph, node.inputs[0], [0]) if node.inputs else None
    axes = [axis for axis in range(1, len(sizes)) if sizes[axis] == channels]
    if len(axes) > 1:  # as many steps as channels
        return axes[0] if _from_convolution(node) else axes[-1]
    return axes[0] if axes else None


def _from_convolution(node: Any) -> bool:
    """Whether the nearest layer before a node has its channels on axis 1."""
    while node.inputs:
        node = node.inputs[0]
        if isinstance(node.module, (*CONVOLUTIONS, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            return True
        if node.type in (ops.OPTYPE.LINEAR, ops.OPTYPE.LN, ops.OPTYPE.EMBED, ops.OPTYPE.CUSTOMIZED, ops.OPTYPE.MHA):
            return False
    return False


def _sliced_axis(node: Any, n_axes: int) -> int:
    axis = int(node.module.dim)  # a negative one is kept as a huge number
    return axis if axis < n_axes else axis - (1 << 64) + n_axes


def _pin(node: Any, forward: Any, backward: Any) -> None:
    """Set the mapping of channels through a node for good: torch-pruning sets its own anew before every cut."""
    for before in node.inputs:
        for dependency in before.dependencies:
            if dependency.target is node:
                dependency.index_mapping = _Pinned([forward, dependency.index_mapping[1]])
        for dependency in node.dependencies:
            if dependency.target is before:
                dependency.index_mapping = _Pinned([backward, dependency.index_mapping[1]])


class _Pinned(list[Any]):
    """The two mappings of a dependency, of which the first stays."""

    def __setitem__(self, place: Any, mapping: Any) -> None:
        if place != 0:
            super().__setitem__(place, mapping)


@dataclass(frozen=True)
class _Flattened:
    """From channels to their places in a flattened tensor [N, before x channels x after]."""

    before: int
    after: int
    channels: Callable[[], int]

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        channels = self.channels()
        return [
            index._replace(idx=(row * channels + index.idx) * self.after + place)
            for row in range(self.before)
            for index in indices
            for place in range(self.after)
        ]


@dataclass(frozen=True)
class _Unflattened:
    """Back from places in a flattened tensor to channels."""

    after: int
    channels: Callable[[], int]

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        channels = self.channels()
        return list(dict.fromkeys(index._replace(idx=index.idx // self.after % channels) for index in indices))
