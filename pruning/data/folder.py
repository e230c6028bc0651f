"""``folder:DIR``: one folder of image files per class, with or without train/ and test/ (or val/) above them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pruning.data import Augmentation, Dataset, Labels, existing, moments_of, split, take_options
from pruning.data._duplicates import warn_of_duplicates
from pruning.data._layout import find_layout
from pruning.data._tree import PassedOver, images_beside, images_under
from pruning.notices import say
from sensai_serve.errors import DataError, RequestError
from sensai_serve.preprocess import MODES, ImageSpec, InputSpec, read_image


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the images under `argument`.

    Options: ``size`` (pixels a side, 64: the shorter side is resized to it and the centre cropped), ``mode`` (RGB or
    L), ``flip`` (1 or 0: whether a mirrored image is still of its class, 1).
    """
    take_options("folder", options, ("size", "mode", "flip"))
    root = existing(argument, "folder")
    size, mode = options.get("size", "64"), options.get("mode", "RGB")
    if not (size.isascii() and size.isdigit() and len(size) < 5 and 1 <= int(size) <= 4096):
        raise DataError(f"folder: size is {size!r}, expected pixels, 1 to 4096")
    if mode not in MODES or options.get("flip", "1") not in ("0", "1"):
        raise DataError(
            f"folder: mode is {mode!r} and flip {options.get('flip', '1')!r}, expected RGB or L, and 0 or 1"
        )
    side = int(size)
    colour: Literal["RGB", "L"] = "RGB" if mode == "RGB" else "L"
    image = ImageSpec(mode=colour, resize=side, crop=(side, side))
    unscaled = InputSpec(shape=(MODES[mode], side, side), image=image)

    passed = PassedOver()
    layout = find_layout(root, passed)
    whole = _read(layout.training, layout.labels, unscaled, passed, required=True)
    if layout.test is not None:
        train, test = whole, _read((layout.test,), layout.labels, unscaled, passed, required=False)
    else:
        kept, held_out = split(whole.y, 0.2, seed)
        train, test = whole.take(kept), whole.take(held_out)
    for folder in {root, *layout.training, *([layout.test] if layout.test else [])}:
        for file in images_beside(folder):
            passed.add("images beside the class folders", file)
    if passed.counts:
        say(f"folder: {root}: left out: {passed}")
    warn_of_duplicates(f"folder: {root}", train.digests, test.digests, (train.files, test.files))
    spec = InputSpec(shape=unscaled.shape, normalisation=moments_of(train.x, scale=1 / 255), image=image)
    augmentation = Augmentation(flip=options.get("flip", "1") == "1", shift=max(1, side // 8))
    return Dataset(root.resolve().name, layout.labels, spec, train.x, train.y, test.x, test.y, augmentation)


@dataclass(frozen=True)
class _Part:
    x: npt.NDArray[np.uint8]
    y: Labels
    files: list[Path]
    digests: list[bytes]
    """Of the files' bytes."""

    def take(self, index: Labels) -> _Part:
        return _Part(self.x[index], self.y[index], [self.files[i] for i in index], [self.digests[i] for i in index])


def _read(
    places: Sequence[Path], labels: Sequence[str], spec: InputSpec, passed: PassedOver, *, required: bool
) -> _Part:
    files: list[Path] = []
    y: list[int] = []
    for index, label in enumerate(labels):
        found = [file for place in places for file in images_under(place / label, passed)]
        if not found and required:
            raise DataError(f"folder: class {label!r} has no images in {places[0] / label}, expected at least one")
        files += found
        y += [index] * len(found)
    if not files:
        raise DataError(f"folder: {places[0]} has no images, expected some of each class")
    x = np.empty((len(files), *spec.shape), np.uint8)  # not a list first: twice the memory of all images
    digests = []
    for at, file in enumerate(files):
        try:
            data = file.read_bytes()
            x[at] = read_image(data, spec)
        except RequestError as error:
            raise DataError(f"{file}: {error}") from None
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}), expected an image") from None
        digests.append(hashlib.blake2b(data, digest_size=16).digest())
    return _Part(x, np.asarray(y, np.int64), files, digests)
