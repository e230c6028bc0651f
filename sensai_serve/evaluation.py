"""The labels that the inputs of a bundle's evaluation got when the bundle was made."""

from __future__ import annotations

import zipfile

import numpy as np
import numpy.typing as npt

from sensai_serve.bundles import Bundle
from sensai_serve.errors import DataError

EVALUATION = "evaluation.npz"
"""Name of the file in a bundle. Arrays [N]: ``class_id`` the label that each test input got from all workers, ``label``
the true one; where there is such a thing, ``reference`` and ``monolith`` what those networks gave, ``elected`` whether
a majority of its copies voted for it, ``cascade`` the label where workers are asked only until the answer is sure, and
``asked`` how many then were. ``files`` [F, N] are the labels that each file gave alone."""


def kept_labels(bundle: Bundle) -> dict[str, npt.NDArray[np.int64]] | None:
    """The arrays of a bundle's `EVALUATION`; None where it has none.

    Raises:
        DataError: the file is damaged.
    """
    path = bundle.path / EVALUATION
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = {name: np.asarray(file[name], np.int64) for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error})") from None
    if not {"class_id", "label"} <= set(kept) or len({array.shape[-1:] for array in kept.values()}) != 1:
        raise DataError(f"{path} is damaged (expected class_id and label, and as many of each as there are inputs)")
    return kept
