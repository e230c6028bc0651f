"""``cifar10:DIR``: 60,000 colour pictures of 32x32 pixels in ten classes, standard binary files."""

from __future__ import annotations

from collections.abc import Mapping

from pruning.data import Augmentation, Dataset, _cifar, take_options
from sensai_serve.preprocess import ImageSpec, InputSpec, Normalisation

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NORMALISATION = Normalisation(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""ImageNet's moments: what the published CIFAR-10 ResNets were trained with."""
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the folder `argument` of .bin files, or its parent."""
    take_options("cifar10", options, ())
    folder = _cifar.find(argument, "cifar10", "cifar-10-batches-bin", (*TRAIN, "test_batch.bin"))
    x, y = _cifar.read([folder / file for file in TRAIN], 1, len(LABELS))
    x_test, y_test = _cifar.read([folder / "test_batch.bin"], 1, len(LABELS))
    labels = _cifar.label_names(folder / "batches.meta.txt", LABELS)
    spec = InputSpec(shape=(3, 32, 32), normalisation=NORMALISATION, image=ImageSpec(mode="RGB", resize=(32, 32)))
    return Dataset("cifar10", labels, spec, x, y, x_test, y_test, Augmentation(flip=True, shift=4))
