"""``cifar100:DIR``: 60,000 colour pictures of 32x32 pixels in a hundred (fine) classes, standard binary files."""

from __future__ import annotations

from collections.abc import Mapping

from pruning.data import Augmentation, Dataset, _cifar, take_options
from sensai_serve.preprocess import ImageSpec, InputSpec, Normalisation

N_CLASSES = 100
NORMALISATION = Normalisation(scale=1 / 255, mean=(0.507, 0.487, 0.441), std=(0.267, 0.256, 0.276))
"""Its own moments, as most published networks use them."""


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the folder `argument` of .bin files, or its parent."""
    take_options("cifar100", options, ())
    folder = _cifar.find(argument, "cifar100", "cifar-100-binary", ("train.bin", "test.bin"))
    x, y = _cifar.read([folder / "train.bin"], 2, N_CLASSES)
    x_test, y_test = _cifar.read([folder / "test.bin"], 2, N_CLASSES)
    labels = _cifar.label_names(folder / "fine_label_names.txt", [f"class_{c:02d}" for c in range(N_CLASSES)])
    spec = InputSpec(shape=(3, 32, 32), normalisation=NORMALISATION, image=ImageSpec(mode="RGB", resize=(32, 32)))
    return Dataset("cifar100", labels, spec, x, y, x_test, y_test, Augmentation(flip=True, shift=4))
