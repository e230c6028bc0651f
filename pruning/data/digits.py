"""``digits``: 1,797 handwritten digits of 8x8 grey pixels, embedded in scikit-learn; needs no download."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pruning.data import Augmentation, Dataset, moments_of, split, take_nothing
from sensai_serve.preprocess import ImageSpec, InputSpec


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """The digits, a seeded stratified fifth held out as the test part.

    Pixels are kept as 0..255 (scikit-learn has 0..16), so that an 8x8 image file gives the very same values.
    """
    from sklearn.datasets import load_digits

    take_nothing("digits", argument, options)
    raw = load_digits()
    pixels = np.rint(raw.images[:, None] * (255 / 16)).astype(np.uint8)  # [N, 1, 8, 8]
    kept, held_out = split(raw.target, 0.2, seed)
    spec = InputSpec(
        shape=(1, 8, 8),
        normalisation=moments_of(pixels[kept], scale=1 / 255),
        image=ImageSpec(mode="L", resize=(8, 8)),
    )
    return Dataset(
        "digits",
        tuple(str(label) for label in raw.target_names),
        spec,
        pixels[kept],
        raw.target[kept],
        pixels[held_out],
        raw.target[held_out],
        Augmentation(shift=1),
    )
