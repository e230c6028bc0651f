"""The labels that the inputs of a bundle's evaluation got when the bundle was made."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.bundles import Bundle
from sensai_serve.errors import DataError

EVALUATION = "evaluation.npz"
"""Name of the file in a bundle. Arrays [N]: ``class_id`` the label that each test input got from all workers, ``label``
the true one; where there is such a thing, ``reference`` and ``monolith`` what those networks gave, ``elected`` whether
a majority of its copies voted for it, ``cascade`` the label where workers are asked only until the answer is sure, and
``asked`` how many then were. ``files`` [F, N] are the labels that each file gave alone. Of several labels at once
``labels`` [N, C] is the set that each test input got from all workers, ``label`` [N, C] the true one, ``scores`` [N, C]
the merged scores, and ``reference`` and ``monolith`` [N, C] the scores of those networks."""


def kept_labels(bundle: Bundle) -> dict[str, npt.NDArray[np.int64]] | None:
    """The arrays of a bundle's `EVALUATION`, of a bundle that gives one label; None where it has none.

    Raises:
        DataError: the file is damaged.
    """
    path = bundle.path / EVALUATION
    found = _read(path)
    if found is None:
        return None
    kept = {name: np.asarray(array, np.int64) for name, array in found.items()}
    if not {"class_id", "label"} <= set(kept) or len({array.shape[-1:] for array in kept.values()}) != 1:
        raise DataError(f"{path} is damaged (expected class_id and label, and as many of each as there are inputs)")
    return kept


def kept_sets(bundle: Bundle) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays of a bundle's `EVALUATION`, of a bundle that gives sets of labels; None where it has none.

    Raises:
        DataError: the file is damaged.
    """
    path, width = bundle.path / EVALUATION, len(bundle.manifest.labels)
    kept = _read(path)
    if kept is None:
        return None
    shapes = {array.shape for array in kept.values()}
    if not {"labels", "label"} <= set(kept) or len(shapes) != 1 or next(iter(shapes))[1:] != (width,):
        raise DataError(f"{path} is damaged (expected labels and label, {width} for each input)")
    return kept


def _read(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error})") from None
