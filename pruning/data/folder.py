"""``folder:DIR``: one folder of image files per class, with or without train/ and test/ (or val/) above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pruning.data import Augmentation, Dataset, Labels, existing, moments_of, split, take_options
from sensai_serve.errors import DataError, ImageError
from sensai_serve.preprocess import MODES, ImageSpec, InputSpec, read_image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TEST_FOLDERS = ("test", "val", "validation")


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the images under `argument`.

    Options: ``size`` (pixels a side, 64: the shorter side is resized to it and the centre cropped), ``mode`` (RGB or
    L), ``flip`` (1 or 0: whether a mirrored image is still of its class, 1).
    """
    take_options("folder", options, ("size", "mode", "flip"))
    root = existing(argument, "folder")
    size, mode = options.get("size", "64"), options.get("mode", "RGB")
    if not size.isdigit() or not 1 <= int(size) <= 4096:
        raise DataError(f"folder: size is {size!r}, expected pixels, 1 to 4096")
    if mode not in MODES or options.get("flip", "1") not in ("0", "1"):
        raise DataError(
            f"folder: mode is {mode!r} and flip {options.get('flip', '1')!r}, expected RGB or L, and 0 or 1"
        )
    side = int(size)
    colour: Literal["RGB", "L"] = "RGB" if mode == "RGB" else "L"
    image = ImageSpec(mode=colour, resize=side, crop=(side, side))
    unscaled = InputSpec(shape=(MODES[mode], side, side), image=image)

    train = root / "train" if (root / "train").is_dir() else root
    labels = tuple(sorted(d.name for d in train.iterdir() if d.is_dir() and not d.name.startswith(".")))
    if not labels:
        raise DataError(f"folder: {train} has no folders, expected one for each class")
    x, y = _read(train, labels, unscaled)
    test = next((root / name for name in TEST_FOLDERS if train != root and (root / name).is_dir()), None)
    if test is not None:
        x_test, y_test = _read(test, labels, unscaled)
    else:
        kept, held_out = split(y, 0.2, seed)
        x, y, x_test, y_test = x[kept], y[kept], x[held_out], y[held_out]
    spec = InputSpec(shape=unscaled.shape, normalisation=moments_of(x, scale=1 / 255), image=image)
    augmentation = Augmentation(flip=options.get("flip", "1") == "1", shift=max(1, side // 8))
    return Dataset(root.resolve().name, labels, spec, x, y, x_test, y_test, augmentation)


def _read(root: Path, labels: Sequence[str], spec: InputSpec) -> tuple[npt.NDArray[np.uint8], Labels]:
    images, y = [], []
    for index, label in enumerate(labels):
        files = sorted(f for f in (root / label).rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not files:
            raise DataError(f"folder: class {label!r} has no images in {root / label}, expected at least one")
        for file in files:
            try:
                images.append(read_image(file, spec))
            except (ImageError, OSError) as error:
                raise DataError(f"{file}: {error}") from None
        y += [index] * len(files)
    return np.stack(images), np.asarray(y, np.int64)
