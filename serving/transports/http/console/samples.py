"""Inputs to try a model with from the console: the first of its bundle's golden samples, whose answers are known."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from sensai_serve.errors import RequestError
from sensai_serve.golden import Golden
from sensai_serve.preprocess import InputSpec
from sensai_serve.tensors import Array, Inputs, NamedInputs, copy_of
from serving.engine.gateway import Gateway

MOST = 12
"""Samples of one model."""
SIDE = 96
"""Pixels that a thumbnail has on its longer side at most."""


@dataclass(frozen=True)
class Thumbnail:
    """One sample as the page shows it."""

    label: str
    """The class that all workers together give it; all labels where an input has several."""
    width: int
    height: int
    rgba: str
    """Its pixels in base64, four bytes each; empty where the model takes no images."""


@dataclass(frozen=True)
class _Samples:
    inputs: Inputs
    """n inputs, as the network takes them."""
    labels: tuple[str, ...]
    """The label of each, as `Thumbnail` has it."""


class Samples:
    """The samples of all models, each read when it is first asked for."""

    def __init__(self) -> None:
        self._read: WeakKeyDictionary[Gateway, _Samples] = WeakKeyDictionary()

    async def thumbnails(self, gateway: Gateway) -> list[Thumbnail]:
        """The samples of a model, as they are shown."""
        samples, specs = await self._of(gateway), gateway.manifest.inputs
        if isinstance(samples.inputs, NamedInputs) or specs[0].image is None:
            return [Thumbnail(label, 0, 0, "") for label in samples.labels]
        return [_thumbnail(x, label, specs[0]) for x, label in zip(samples.inputs, samples.labels, strict=True)]

    async def one(self, gateway: Gateway, number: int) -> tuple[Inputs, str]:
        """One sample, N = 1, as the network takes it, and the label that all workers together give it.

        Raises:
            RequestError: there is no such sample.
        """
        samples = await self._of(gateway)
        if not 0 <= number < len(samples.inputs):
            raise RequestError(f"sample is {number}, expected 0 to {len(samples.inputs) - 1}")
        return samples.inputs[number : number + 1], samples.labels[number]

    async def _of(self, gateway: Gateway) -> _Samples:
        if (samples := self._read.get(gateway)) is None:
            golden = await asyncio.to_thread(gateway.bundle.golden)
            names = _names(golden, gateway.manifest.labels)
            samples = self._read[gateway] = _Samples(copy_of(golden.inputs[:MOST]), names)
        return samples


def _names(golden: Golden, labels: Sequence[str]) -> tuple[str, ...]:
    if golden.labels is None:
        return tuple(labels[c] for c in golden.class_id[:MOST])
    return tuple(", ".join(labels[c] for c in np.flatnonzero(row == 1).tolist()) for row in golden.labels[:MOST])


def _thumbnail(normalised: Array, label: str, spec: InputSpec) -> Thumbnail:
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (spec.normalisation.mean, spec.normalisation.std))
    step = -(-max(spec.shape[1:]) // SIDE)
    raw = (normalised[:, ::step, ::step].astype(np.float64) * std + mean) / spec.normalisation.scale
    pixels = np.clip(np.round(raw), 0, 255).astype(np.uint8)  # [channels, height, width]
    rgba = np.full((*pixels.shape[1:], 4), 255, np.uint8)
    rgba[:, :, :3] = pixels.transpose(1, 2, 0)  # a single channel goes to all three
    return Thumbnail(label, rgba.shape[1], rgba.shape[0], b64encode(rgba.tobytes()).decode())
