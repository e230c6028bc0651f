"""Inputs read from files: images as they are, numbers from .npy, .npz, .json and .csv."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import DataError
from sensai_serve.examples import file_path

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One input of a model, as read from a file."""

    name: str
    """Name of the file, with the row where it holds several inputs."""
    raw: bytes | Numbers
    """An image file's bytes, or the raw numbers of one input."""


def read_samples(path: Path, shape: tuple[int, ...]) -> Iterator[Sample]:
    """Read the inputs in one file; any file that is not .npy, .npz, .json or .csv is taken for an image.

    Args:
        path: the file, or `example:NAME` for a picture that comes with the package.
        shape: shape of one input of the model.

    Raises:
        DataError: the file is damaged, or its numbers do not fit the shape.
        OSError: the file cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        yield Sample(str(path), file_path(path).read_bytes())
        return
    try:
        array = np.asarray(reader(path), np.float64)
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, RecursionError):
        raise DataError(f"{path} is damaged, expected a {path.suffix} file of numbers") from None
    inputs = _split(array, shape)
    if inputs is None:
        raise DataError(
            f"{path}: shape is {list(array.shape)}, expected {list(shape)}, or rows of {int(np.prod(shape))} numbers"
        )
    for row, numbers in enumerate(inputs):
        yield Sample(str(path) if array.shape == shape else f"{path}[{row}]", numbers)


def _split(array: Numbers, shape: tuple[int, ...]) -> Numbers | None:
    """Reshape one input, a batch, or flat rows to [N, *shape]; None where the array is none of them."""
    size = int(np.prod(shape))
    if array.shape == shape or array.shape[1:] == shape or (array.ndim <= 2 and array.shape[-1:] == (size,)):
        return array.reshape(-1, *shape)
    return None


def _npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["inputs"] if "inputs" in arrays else arrays[_only(arrays.files)]


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise KeyError("inputs")
    return names[0]


def _json(path: Path) -> Any:
    content = json.loads(path.read_bytes())
    return content["inputs"] if isinstance(content, dict) else content


def _csv(path: Path) -> Any:
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not _is_number(rows[0][0]):
        del rows[0]
    return [[float(cell) for cell in row] for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS = {".npy": lambda path: np.load(path, allow_pickle=False), ".npz": _npz, ".json": _json, ".csv": _csv}
