"""Groupings decide which classes share a subnet.

A new way is one new file here with a function ``group(classes, n_groups, seed)`` that puts the C classes of a `Classes`
into groups of equal size, to within one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pruning.cutting.graph import output_layer
from pruning.data import Dataset, Labels, examples_of_each, has_label
from pruning.training.loop import infer
from sensai_serve.errors import AssignmentError
from sensai_serve.preprocess import normalise

Group = Callable[["Classes", int, int], list[list[int]]]
"""Classes, the number of groups and a seed to groups: ascending, in the order of their first class."""
Features = npt.NDArray[np.float64]
TEMPERATURE = 4.0
"""Temperature that logits are divided by before confusions are read off them. Published weights have seen all training
images, and a reference is too sure of images that it has learnt by heart to show which classes look alike to it."""


@dataclass(frozen=True)
class Classes:
    """The classes as the reference sees them; what a grouping looks at is computed when it first does."""

    model: nn.Module
    """Gives logits [N, C]."""
    dataset: Dataset
    sample: Labels
    """Training images, of every class some: for features."""
    held_out: Labels
    """Images of the validation part: for what is taken for what."""

    @property
    def n_classes(self) -> int:
        """C."""
        return self.dataset.n_classes

    @cached_property
    def features(self) -> Features:
        """See `class_features`."""
        return class_features(self.model, self.dataset, self.sample)

    @cached_property
    def confusion(self) -> Features:
        """See `class_confusion`."""
        return class_confusion(self.model, self.dataset, self.held_out)


def class_features(model: nn.Module, dataset: Dataset, indices: Labels, *, batch: int = 256) -> Features:
    """Mean penultimate features of each class, [C, features]: what feeds the output layer.

    Args:
        model: gives logits.
        dataset: where the images come from.
        indices: [N] training images, some of every class.
        batch: images at a time.
    """
    layer = model.get_submodule(output_layer(model, dataset.spec.shape))
    seen: list[npt.NDArray[np.float32]] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].flatten(1).float().cpu().numpy())

    hook = layer.register_forward_pre_hook(note)
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            for start in range(0, len(indices), batch):
                x = normalise(dataset.x[indices[start : start + batch]], dataset.spec)
                model(torch.from_numpy(x).to(device))
    finally:
        hook.remove()
    features, y = np.concatenate(seen).astype(np.float64), dataset.y[indices]
    return np.stack([features[has_label(y, c)].mean(axis=0) for c in range(dataset.n_classes)])


def class_confusion(
    model: nn.Module, dataset: Dataset, indices: Labels, *, temperature: float = TEMPERATURE
) -> Features:
    """Confusion of classes: the mean probability [C, C] that the model gives class j over images of class i.

    Of sets of labels that includes the images that are of both.

    Probabilities rather than counted mistakes: a good reference makes too few of these to tell classes apart by.

    Args:
        model: gives logits.
        dataset: where the images come from.
        indices: [N] training images; the row of a class without any is 0.
        temperature: divides the logits.
    """
    logits = infer(model, dataset, dataset.x[indices]).astype(np.float64) / temperature
    if dataset.task == "multilabel":
        together = dataset.y[indices].T @ (1 / (1 + np.exp(-logits)))
        return np.asarray(together / np.maximum(examples_of_each(dataset.y[indices], dataset.n_classes), 1)[:, None])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = np.zeros((dataset.n_classes, dataset.n_classes))
    np.add.at(total, dataset.y[indices], powers / powers.sum(axis=1, keepdims=True))
    count = np.bincount(dataset.y[indices], minlength=dataset.n_classes)
    return np.asarray(total / np.maximum(count, 1)[:, None])


def check_groups(n_classes: int, n_groups: int, *, uneven: bool = True) -> None:
    """Check a number of groups.

    Args:
        n_classes: C.
        n_groups: G, the number of groups.
        uneven: whether groups may differ by one class.

    Raises:
        AssignmentError: G is not in 1..C, or does not divide C and should.
    """
    if not 1 <= n_groups <= n_classes:
        raise AssignmentError(f"groups is {n_groups}, expected 1 to the number of classes, {n_classes}")
    if n_classes % n_groups and not uneven:
        even = ", ".join(map(str, divisors(n_classes)))
        raise AssignmentError(
            f"groups is {n_groups}: {n_classes} classes do not divide into that many equal groups, and an answer waits "
            f"for the largest; expected one of {even}, or --uneven for groups of {n_classes // n_groups} and "
            f"{n_classes // n_groups + 1}"
        )


def divisors(n_classes: int) -> list[int]:
    """The numbers of equal groups that there are, ascending."""
    return [count for count in range(1, n_classes + 1) if n_classes % count == 0]


def from_assignment(group_of: npt.NDArray[np.integer], n_groups: int) -> list[list[int]]:
    """Groups, each ascending and in the order of their first class, from the group index [C] of every class."""
    return sorted([int(c) for c in np.flatnonzero(group_of == g)] for g in range(n_groups))
