"""``npz:FILE``: arrays x [N, ...], or one for each input, y ([N], or [N, C] for sets), x_test, y_test, labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from pruning.data import INPUTS, Dataset, existing, from_arrays, from_several, take_options
from pruning.data._arrays import NAMES, Picture
from sensai_serve.errors import DataError

_IMAGE: dict[str, Picture] = {"RGB": "RGB", "L": "L", "no": "no", "guess": "guess"}


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the file `argument`.

    Options: ``image`` (``RGB`` or ``L``: x holds pictures, which makes a bundle that takes image files; ``no``; guessed
    for uint8), ``flip`` (1: a mirrored picture is still of its class; 0), ``shift`` (pixels that training moves
    pictures by at most, or steps of series [channels, steps]; 0). Other numbers are taken as they are and
    normalised by the training part's moments. ``inputs`` (names of arrays, with commas between): the network takes
    several inputs, of each of which the file has an array, and perhaps one called ``NAME_test``. An array ``inputs`` of
    these names says the same.
    """
    take_options("npz", options, ("image", "flip", "shift", INPUTS))
    image, flip = options.get("image", "guess"), options.get("flip", "0")
    if image not in _IMAGE or flip not in ("0", "1"):
        raise DataError(f"npz: image is {image!r} and flip {flip!r}, expected RGB, L or no, and 0 or 1")
    shift = options.get("shift", "0")
    if not (shift.isascii() and shift.isdigit() and len(shift) < 7):
        raise DataError(f"npz: shift is {shift!r}, expected a whole number from 0")
    path = existing(argument, "npz")
    arrays: dict[str, Any] = {}
    known = {name for names in NAMES.values() for name in names} | {INPUTS}
    several = [name for name in options.get(INPUTS, "").split(",") if name]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            if not several and INPUTS in held.files:
                several = [str(name) for name in held[INPUTS].ravel().tolist()]
            known |= {part for name in several for part in (name, f"{name}_test")}
            for name in held.files:
                arrays[name] = held[name] if name in known else None
    except MemoryError:
        raise DataError(f"{path}: its arrays do not fit in memory") from None
    except Exception as error:  # zip files, compression and array headers raise whatever they like over damage
        reason = " ".join(str(error).split())[:200] if is_zipfile(path) else "it is no zip file, as np.savez writes it"
        raise DataError(f"{path} is no .npz file of arrays ({reason or type(error).__name__})") from None
    if several:
        if odd := sorted(set(options) - {INPUTS}):
            raise DataError(f"npz: {odd[0]} is given beside inputs, expected it for one array x only")
        return from_several(Path(path).stem, arrays, several, seed=seed)
    dataset = from_arrays(Path(path).stem, arrays, seed=seed, picture=_IMAGE[image], flip=flip == "1")
    return dataclasses.replace(dataset, augmentation=dataclasses.replace(dataset.augmentation, shift=int(shift)))
