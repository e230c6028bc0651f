"""Profiles a network: what the training images of each class do on every channel that feeds a prunable layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.criteria import Doubles, Statistics
from pruning.cutting.layers import PRUNABLE, RECURRENT, channel_axis
from pruning.data import Dataset, Labels, examples_of_each, has_label
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import normalise

BATCH = 128


@dataclass(frozen=True)
class Profile:
    """Statistics of activations, by layer, class and input channel."""

    layers: Mapping[str, Doubles]
    """Arrays [4, C, channels] by the layer's name; the first axis is the fields of `Statistics`, in their order."""

    def statistics(self, layer: str, classes: Sequence[int]) -> Statistics:
        """Statistics of one layer over some classes, each class weighing the same.

        Raises:
            ModelError: the network computes that layer without calling it as a module.
        """
        if layer not in self.layers:
            raise ModelError(f"model: {layer} is not called as a module, expected that of every layer that is cut")
        sparsity, zeros, magnitude, taylor = self.layers[layer][:, list(classes)].mean(axis=1)
        return Statistics(sparsity, zeros, magnitude, taylor)


def profile(
    model: nn.Module,
    dataset: Dataset,
    indices: Labels,
    *,
    theta1: float,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """One pass over training images, forward for the activations and backward for their gradients.

    Args:
        model: gives logits [N, C]; not changed.
        dataset: where the images come from.
        indices: [N] training images, some of every class.
        theta1: activations of smaller magnitude count as zero.
        on_step: called with images done and N.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    device = next(network.parameters()).device
    notes = _Notes(network, dataset.spec.shape, theta1, dataset.n_classes)
    recurrent = any(isinstance(layer, RECURRENT) for layer in network.modules())
    try:
        # cuDNN's recurrent layers have a backward pass in training mode only.
        with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
            backward_over(notes.run, dataset, indices, device, notes.add_up, on_step)
    finally:
        notes.end()
    counts = np.maximum(examples_of_each(dataset.y[indices], dataset.n_classes), 1)
    return Profile({name: (total.cpu().numpy() / counts[None, :, None]) for name, total in notes.sums.items()})


class _Notes:
    """What the prunable layers of a network do on a batch, noted by hooks and added up by label."""

    def __init__(self, network: nn.Module, input_shape: Sequence[int], theta1: float, n_classes: int) -> None:
        self.sums: dict[str, Tensor] = {}
        """By layer, [4, C, channels]: the fields of `Statistics`, summed over the images of each class."""
        self._network = network
        self._theta1 = theta1
        self._n_classes = n_classes
        self._batch_axes = _batch_axes(network, input_shape)
        self._n_images = 0
        self._noted: list[tuple[str, Tensor]] = []  # layers that ran on this batch, and their rows
        self._hooks = [
            layer.register_forward_pre_hook(partial(self._note, name))
            for name, layer in network.named_modules()
            if isinstance(layer, PRUNABLE)
        ]
        self._hooks += [
            layer.register_forward_hook(_begin_gradients)
            for layer in network.modules()
            if isinstance(layer, nn.Embedding)
        ]

    def run(self, x: Tensor) -> Tensor:
        """Run a batch [B, *shape] to logits [B, C], and note what layers do."""
        self._n_images = len(x)
        logits: Tensor = self._network(x)
        return logits

    def add_up(self, label: Tensor) -> None:
        """Add what was noted of a batch, whose labels these are, once its gradients are there."""
        for name, rows in self._noted:
            if name not in self.sums:
                shape = len(rows), self._n_classes, rows.shape[2]
                self.sums[name] = torch.zeros(shape, dtype=torch.float64, device=rows.device)
            add_by_label(self.sums[name], 1, label, rows.double())
        self._noted.clear()

    def end(self) -> None:
        """Note nothing more."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0]
        axis = channel_axis(layer)
        per_channel = partial(self._per_channel, name, axis)
        seen = x.detach()  # the gradient's hook must not hold what holds it: such batches pile up to gigabytes
        magnitude = seen.abs()
        rows = torch.stack(
            [
                per_channel((magnitude < self._theta1).float()),
                per_channel((seen <= 0).float()),
                per_channel(magnitude),
                torch.zeros(self._n_images, x.shape[axis], device=x.device),
            ]
        )  # [4, images, channels]

        def take_gradient(gradient: Tensor) -> None:
            rows[3] = per_channel(seen * gradient, torch.sum).abs()

        if x.requires_grad:
            x.register_hook(take_gradient)  # type: ignore[no-untyped-call]
        self._noted.append((name, rows))

    def _per_channel(self, name: str, axis: int, x: Tensor, reduce: Callable[..., Tensor] = torch.mean) -> Tensor:
        """[images, channels] of a layer's input, over all positions of an image.

        Raises:
            ModelError: the layer does not run on as many inputs for each image.
        """
        rows = x.movedim((self._batch_axes.get(name, 0), axis), (0, -1))
        if len(rows) % self._n_images:
            raise ModelError(
                f"model: {name} runs on {len(rows)} inputs for {self._n_images} images, expected as many for each image"
            )
        return reduce(rows.reshape(self._n_images, -1, rows.shape[-1]), dim=1)


def _begin_gradients(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> Tensor:
    return out if out.requires_grad else out.requires_grad_()  # tokens have no gradient


def backward_over(
    run: Callable[[Tensor], Tensor],
    dataset: Dataset,
    indices: Labels,
    device: torch.device,
    after: Callable[[Tensor], None],
    on_step: Callable[[int, int], None],
) -> None:
    """Run forward and backward over images of the training part, batch by batch; nothing is trained.

    Args:
        run: inputs [B, *shape], which require gradients, to logits [B, C].
        dataset: where the images come from.
        indices: [N] images of the training part.
        device: where to compute.
        after: called with the labels [B], or sets of them [B, C], of a batch once its gradients are there.
        on_step: called with images done and N.
    """
    for start in range(0, len(indices), BATCH):
        chosen = indices[start : start + BATCH]
        label = torch.from_numpy(dataset.y[chosen]).to(device)
        x = torch.from_numpy(normalise(dataset.x[chosen], dataset.spec)).to(device).requires_grad_()
        if label.ndim == 1:
            loss = F.cross_entropy(run(x), label, reduction="sum")
        else:
            loss = F.binary_cross_entropy_with_logits(run(x), label.float(), reduction="sum")
        torch.autograd.backward(loss)
        after(label)
        on_step(min(start + BATCH, len(indices)), len(indices))


def some_of_each_class(y: Labels, indices: Labels, count: int, seed: int) -> Labels:
    """At most `count` of `indices` of every class, drawn with `seed`, ascending."""
    generator = np.random.default_rng(seed)
    if y.ndim == 2:  # an example may be drawn for several of its labels
        of_each = [generator.permutation(indices[has_label(y[indices], c)])[:count] for c in range(y.shape[1])]
        return np.unique(np.concatenate(of_each))
    drawn = [generator.permutation(indices[y[indices] == label])[:count] for label in np.unique(y[indices])]
    return np.sort(np.concatenate(drawn))


def _batch_axes(network: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """The axis of each prunable layer's input that grows with the number of images, by the layer's name.

    Windows, patches or frames may lie on it too, those of one image side by side.
    """
    shapes: dict[str, list[torch.Size]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, inputs: shapes.setdefault(name, []).append(inputs[0].shape)

    hooks = [
        layer.register_forward_pre_hook(note(name))
        for name, layer in network.named_modules()
        if isinstance(layer, PRUNABLE)
    ]
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            for count in (2, 3):
                network(torch.zeros(count, *input_shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    axes = {}
    for name, seen in shapes.items():
        grows = [axis for axis, (two, three) in enumerate(zip(seen[0], seen[-1], strict=True)) if two != three]
        axes[name] = grows[0] if grows else 0
    return axes


def add_by_label(total: Tensor, axis: int, label: Tensor, values: Tensor) -> None:
    """Add the values of each example to the rows of its label, or labels.

    Args:
        total: changed in place; its `axis` is of length C.
        axis: of the examples in `values`, and of the classes in `total`.
        label: [B], or 0 and 1 [B, C].
        values: of B examples.
    """
    if label.ndim == 1:
        total.index_add_(axis, label, values)
        return
    examples, classes = label.nonzero(as_tuple=True)
    total.index_add_(axis, classes, values.index_select(axis, examples))
