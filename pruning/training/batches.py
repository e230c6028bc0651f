"""Batches of training images, normalised and augmented on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.data import Dataset, Labels
from pruning.training.augment import Moves, Views, augment, draw
from sensai_serve.preprocess import InputSpec, normalise

SHARE = 0.25
"""The largest part of a card's free memory that one array of training data is kept in."""


@dataclass(frozen=True)
class Batch:
    """The images that a network is trained on in one step."""

    x: Tensor
    """Inputs [B, *shape], normalised and augmented."""
    indices: Tensor
    """Indices [B] of the images in the training part, on the device of `x`."""
    views: Tensor | None
    """Number [B] of the view of each image, on the device of `x`; None where images are augmented anew."""


class Batches:
    """Makes the batches of a training.

    Where the device is no CPU and its memory allows, it holds all raw images, and a step sends it little more than
    their indices: normalising and moving them there costs it nothing, and costs a CPU core more than a small network's
    whole step costs the card.
    """

    def __init__(
        self, dataset: Dataset, views: Views | None, device: torch.device, generator: torch.Generator | None = None
    ) -> None:
        """Copy the raw images to the device where that pays.

        Args:
            dataset: raw images.
            views: fixed views of each image, one of which is drawn at random; None: each image is augmented anew.
            device: where the batches go.
            generator: of the random choices, on the CPU: they are the same on all devices.
        """
        self._dataset, self._views, self._generator, self._device = dataset, views, generator, device
        self._there = _copied(dataset.x, device)

    def make(self, indices: Labels) -> Batch:
        """The training images [B] of `indices`, changed at random."""
        if self._views is not None:
            return self.of(indices, torch.randint(self._views.count, (len(indices),), generator=self._generator))
        return self._made(indices, None, draw(len(indices), self._dataset.augmentation, self._generator))

    def of(self, indices: Labels, which: Tensor) -> Batch:
        """The training images [B] of `indices`, of each the view [B] of that number."""
        assert self._views is not None
        return self._made(indices, which, self._views.of(indices, which))

    def _made(self, indices: Labels, which: Tensor | None, moves: Moves) -> Batch:
        dataset, device, chosen = self._dataset, self._device, torch.from_numpy(indices)
        if self._there is None:
            x = augment(torch.from_numpy(normalise(dataset.x[indices], dataset.spec)), dataset.augmentation, moves)
            return Batch(x.to(device), chosen.to(device), None if which is None else which.to(device))
        columns = [chosen, moves.top, moves.left]
        columns += [part.long() for part in (which, moves.mirrored) if part is not None]
        # One copy from page-locked memory: it waits for nothing that the card has yet to do.
        sent = torch.stack(columns).pin_memory().to(device, non_blocking=True)
        chosen, top, left, *rest = sent.unbind()
        which = None if which is None else rest.pop(0)
        moves = Moves(None if moves.mirrored is None else rest.pop(0).bool(), top, left)
        x = normalise_on_device(self._there[chosen], dataset.spec)
        return Batch(augment(x, dataset.augmentation, moves), chosen, which)


def normalise_on_device(raw: Tensor, spec: InputSpec) -> Tensor:
    """Raw values [N, *shape] to network inputs, as `sensai_serve.preprocess.normalise` does, in the same arithmetic.

    Args:
        raw: on any device.
        spec: what the network expects.
    """
    norm, column = spec.normalisation, (-1, *(1,) * (len(spec.shape) - 1))
    mean, std = (_constant(values, raw.device).view(column) for values in (norm.mean, norm.std))
    return (raw.float() * float(np.float32(norm.scale)) - mean) / std


def fits(size: int, device: torch.device) -> bool:
    """Whether an array of training data of `size` bytes is to be kept in a device's own memory; never on the CPU."""
    return device.type == "cuda" and size <= SHARE * torch.cuda.mem_get_info(device)[0]


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A few numbers in a device's memory; copying them there in each step would make it wait."""
    return torch.tensor(values, device=device)


def _copied(x: Any, device: torch.device) -> Tensor | None:
    if x.dtype not in (np.uint8, np.float32) or not fits(x.nbytes, device):
        return None
    return torch.from_numpy(np.ascontiguousarray(x)).to(device)
