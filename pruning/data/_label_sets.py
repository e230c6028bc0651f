"""Sets of labels, where an example has any number of labels at once: told from single labels, and made to 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning.data._labels import Labels
from sensai_serve.errors import DataError


def are_sets(y: Any) -> bool:
    """Whether labels are sets: lists of names, or rows of 0 and 1 [N, C] some of which have not exactly one 1."""
    if _are_lists(y):
        return True
    array = y if isinstance(y, np.ndarray) else _array(y)
    if array is None or array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "biuf" or not len(array):
        return False
    return bool(((array == 0) | (array == 1)).all() and (array.sum(axis=1, dtype=np.float64) != 1).any())


def names_in(y: Any) -> tuple[str, ...] | None:
    """The labels that lists of names hold, alphabetically; None where `y` is no lists of names."""
    return tuple(sorted({name for row in y for name in row})) if _are_lists(y) else None


def label_sets(name: str, part: str, y: Any, count: int, labels: Sequence[str]) -> Labels:
    """Sets of labels as rows of 0 and 1.

    Args:
        name: of the source, for messages.
        part: ``training`` or ``test``, for messages.
        y: lists of names, or rows of 0 and 1 [N, C].
        count: N, the number of examples.
        labels: of the classes, by index.

    Returns:
        [N, C].

    Raises:
        DataError: neither of them, another number of them, or a label that is not in `labels`.
    """
    what = f"{name}: the labels of the {part} part"
    if _are_lists(y):
        if len(y) != count:
            raise DataError(f"{what} are {len(y)} sets, expected {count}")
        place, found = {label: at for at, label in enumerate(labels)}, np.zeros((count, len(labels)), np.int64)
        for row, names in enumerate(y):
            if unknown := [one for one in names if one not in place]:
                raise DataError(f"{what} name {unknown[0]!r}, expected one of {', '.join(list(labels)[:20])}")
            found[row, [place[one] for one in names]] = 1
        return found
    array = _array(y)
    if array is None or array.shape != (count, len(labels)) or array.dtype.kind not in "biuf":
        shape = "rows of different lengths" if array is None else f"{array.dtype} {list(array.shape)}"
        raise DataError(f"{what} are {shape}, expected a 0 or 1 for each of {len(labels)} labels, {count} times")
    if (wrong := array[(array != 0) & (array != 1)]).size:
        raise DataError(f"{what} hold {wrong.flat[0]}, expected 0 and 1 alone")
    return array.astype(np.int64)


def has_label(y: Labels, c: int) -> npt.NDArray[np.bool_]:
    """Which examples [N] have label `c`, of labels [N] or of sets of them [N, C]."""
    return np.asarray(y == c if y.ndim == 1 else y[:, c] > 0, np.bool_)


def examples_of_each(y: Labels, n_classes: int) -> Labels:
    """The number of examples that have each label, [C], of labels [N] or of sets of them [N, C]."""
    return np.bincount(y, minlength=n_classes) if y.ndim == 1 else y.sum(axis=0)


def check_occurrence(name: str, y: Labels, labels: Sequence[str]) -> None:
    """Check that examples with and without each label are there to learn from.

    Args:
        name: of the source, for messages.
        y: rows of 0 and 1 [N, C] of the training part.
        labels: of the classes, by index.

    Raises:
        DataError: a label is in no set, or in all of them.
    """
    counts = y.sum(axis=0)
    for odd, where in ((np.flatnonzero(counts == 0), "none"), (np.flatnonzero(counts == len(y)), "all")):
        if len(odd):
            raise DataError(
                f"{name}: the labels of the training part are not one-hot, and label {labels[odd[0]]!r} is in {where} "
                f"of {len(y)} sets, expected examples with and without each label"
            )


def split_sets(y: Labels, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Hold out `fraction` of the examples, so that of each label about that fraction is held out.

    Args:
        y: rows of 0 and 1 [N, C].
        fraction: of each label, rounded, at least one example where the label has two or more.
        seed: of the draw.

    Returns:
        Indices that stay and indices held out, both ascending.

    Source: Sechidis et al., "On the Stratification of Multi-Label Data", 2011 (iterative stratification).
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(y))
    if fraction <= 0:
        return np.arange(len(y)), np.empty(0, np.int64)
    count = y.sum(axis=0).astype(np.float64)
    wanted_out = np.where(count > 1, np.maximum(np.round(count * fraction), 1), 0)
    wanted_in, left_out = count - wanted_out, round(len(y) * fraction)
    free, out = np.ones(len(y), np.bool_), np.zeros(len(y), np.bool_)
    while (rest := y[free].sum(axis=0)).any():
        rarest = int(np.where(rest > 0, rest, np.inf).argmin())
        for at in order[free[order] & (y[order, rarest] > 0)]:
            out[at] = wanted_out[rarest] > 0 and wanted_out[rarest] >= wanted_in[rarest]
            (wanted_out if out[at] else wanted_in)[y[at] > 0] -= 1
            free[at] = False
    unlabelled = order[free[order]]
    out[unlabelled[: max(0, left_out - int(out.sum()))]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def _are_lists(y: Any) -> bool:
    if isinstance(y, np.ndarray) and (y.dtype != object or y.ndim != 1):
        return False
    if not isinstance(y, np.ndarray | list | tuple) or not len(y):
        return False
    return all(isinstance(row, list | tuple | set | frozenset) for row in y) and (
        any(len(row) for row in y) and all(isinstance(one, str) for row in y for one in row)
    )


def _array(y: Any) -> npt.NDArray[Any] | None:
    try:
        return np.asarray(y)
    except (ValueError, OverflowError):
        return None
