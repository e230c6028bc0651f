"""``npz:FILE``: arrays x [N, ...], y [N] and, where there are, x_test, y_test, labels."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pruning.data import Dataset, existing, from_arrays, take_options
from sensai_serve.errors import DataError


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the file `argument`. Numbers are taken as they are and normalised by the training part's moments."""
    take_options("npz", options, ())
    path = existing(argument, "npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .npz file of arrays ({error})") from None
    return from_arrays(Path(path).stem, arrays, seed=seed)
