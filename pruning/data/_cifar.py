"""The binary layout of CIFAR-10 and CIFAR-100: label bytes, then 3,072 pixels, image after image.

Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pruning.data import existing
from sensai_serve.errors import DataError

PIXELS = 3 * 32 * 32


def find(directory: str, name: str, folder: str, files: Sequence[str]) -> Path:
    """The folder that holds `files`: `directory` itself, or its `folder`.

    Raises:
        DataError: neither holds them.
    """
    root = existing(directory, name)
    for place in (root, root / folder):
        if all((place / file).is_file() for file in files):
            return place
    raise DataError(f"{name}: {root} does not hold {', '.join(files)}, expected the folder {folder} or its parent")


def read(
    files: Sequence[Path], label_bytes: int, n_classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read binary files.

    Args:
        files: one after another.
        label_bytes: before each image; the last of them is the label.
        n_classes: labels are below it.

    Returns:
        Pixels uint8 [N, 3, 32, 32] and labels [N].

    Raises:
        DataError: a file is cut off or holds labels out of range.
    """
    images, labels = [], []
    for file in files:
        raw = np.fromfile(file, np.uint8)
        record = label_bytes + PIXELS
        if raw.size == 0 or raw.size % record:
            raise DataError(
                f"{file} has {raw.size} bytes, expected a multiple of {record}: truncated or another layout"
            )
        rows = raw.reshape(-1, record)
        if (worst := int(rows[:, label_bytes - 1].max())) >= n_classes:
            raise DataError(f"{file} has label {worst}, expected 0 to {n_classes - 1}")
        images.append(rows[:, label_bytes:].reshape(-1, 3, 32, 32))
        labels.append(rows[:, label_bytes - 1].astype(np.int64))
    return np.concatenate(images), np.concatenate(labels)


def label_names(file: Path, default: Sequence[str]) -> tuple[str, ...]:
    """The names in a ``*.meta.txt`` file, one a line; `default` where it is not there or has another number of them."""
    if not file.is_file():
        return tuple(default)
    names = tuple(file.read_text(encoding="utf-8").split())
    return names if len(names) == len(default) else tuple(default)
