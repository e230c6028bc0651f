"""Labels of any kind that people keep them in, to class indices: each kind is taken rightly or refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import DataError

Labels = npt.NDArray[np.int64]


def class_indices(name: str, part: str, y: Any, count: int, labels: Sequence[str] | None = None) -> Labels:
    """The class of each example.

    Args:
        name: of the source, for messages.
        part: ``training`` or ``test``, for messages.
        y: [N] or [N, 1] whole numbers of any type (booleans, and floating-point numbers that are whole, included), [N]
            names as text, or [N, C] one-hot rows.
        count: N, the number of examples.
        labels: of the classes, by index; None where `y` says what there is.

    Returns:
        [N], from 0; below C where `labels` are given. Names without `labels` are counted alphabetically: see
        `names_of`.

    Raises:
        DataError: none of these, another number of them, or a class that is not in `labels`.
    """
    what = f"{name}: the labels of the {part} part"
    try:
        array = np.asarray(y)
    except (ValueError, OverflowError):
        raise DataError(f"{what} are of different lengths, expected {count} whole numbers or names") from None
    array = _plain(array)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape[:1] != (count,) or array.ndim > 2 or array.dtype.kind not in "biufSU" or count == 0:
        raise DataError(f"{what} are {array.dtype} {list(array.shape)}, expected {count} whole numbers or names, not 0")
    if array.dtype.kind in "SU":
        return _named(what, array, labels)
    if array.ndim == 2:
        return _hot(what, array)
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.floor(array))).all():
        raise DataError(f"{what} are {array.dtype} and not whole, expected {count} whole numbers")
    lowest, highest = int(array.min()), int(array.max())
    if labels is not None:
        if lowest < 0 or highest >= len(labels):
            bad = lowest if lowest < 0 else highest
            raise DataError(f"{name}: the {part} part has label {_short(bad)}, expected 0 to {len(labels) - 1}")
        return array.astype(np.int64)
    distinct = np.unique(array)
    if lowest < 0 or highest >= len(distinct):
        bad = lowest if lowest < 0 else highest
        start = ": they start at 1, and y - 1 is what is expected" if lowest == 1 and highest == len(distinct) else ""
        gap = _first_gap(distinct)
        lacks = f", and class '{gap}' has no training examples" if gap is not None else ""
        raise DataError(
            f"{name}: the {part} part has label {_short(bad)}, expected 0 to {len(distinct) - 1} "
            f"for {len(distinct)} classes{lacks}{start}"
        )
    return array.astype(np.int64)


def names_of(y: Any) -> tuple[str, ...] | None:
    """The classes that `y` names, alphabetically; None where it does not hold text, or what is no text."""
    array = _plain(np.asarray(y)) if not isinstance(y, np.ndarray) else _plain(y)
    return tuple(np.unique(_text("labels", array)).tolist()) if array.dtype.kind in "SU" and array.size else None


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of objects as one of numbers or text, where all of its objects are of one such kind."""
    if array.dtype != object:
        return array
    values = array.ravel().tolist()
    for kinds, dtype in (((bool, int, np.integer, np.bool_), None), ((str,), None), ((bytes,), None), ((float,), None)):
        if values and all(isinstance(value, kinds) for value in values):
            plain = np.asarray(values, dtype)
            return plain.reshape(array.shape) if plain.dtype != object else array
    return array


def _text(what: str, array: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    if array.dtype.kind == "U":
        return array
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{what} are bytes that are no UTF-8, expected whole numbers or names") from None


def _named(what: str, array: npt.NDArray[Any], labels: Sequence[str] | None) -> Labels:
    if array.ndim != 1:
        raise DataError(f"{what} are {array.dtype} {list(array.shape)}, expected one name for each example")
    distinct, index = np.unique(_text(what, array), return_inverse=True)
    if labels is None:
        return index.astype(np.int64)
    known = {label: at for at, label in enumerate(labels)}
    if unknown := [label for label in distinct.tolist() if label not in known]:
        raise DataError(f"{what} name {unknown[0]!r}, expected one of {', '.join(list(labels)[:20])}")
    places: Labels = np.asarray([known[label] for label in distinct.tolist()], np.int64)
    found: Labels = places[index]
    return found


def _hot(what: str, array: npt.NDArray[Any]) -> Labels:
    if not (((array == 0) | (array == 1)).all() and (array.sum(axis=1, dtype=np.float64) == 1).all()):
        raise DataError(
            f"{what} are {array.dtype} {list(array.shape)} and not one-hot, expected one class for each example, or "
            "0 and 1 alone for sets of labels"
        )
    return np.asarray(array.argmax(axis=1), np.int64)


def _first_gap(distinct: npt.NDArray[Any]) -> int | None:
    """The lowest whole number from 0 that is not among ascending `distinct` but below the highest of them."""
    upward = distinct[distinct >= 0]
    gaps = np.flatnonzero(upward != np.arange(len(upward)))
    return int(gaps[0]) if len(gaps) else None


def _short(label: int) -> str:
    return str(label) if abs(label) < 10**20 else f"{label:.3g}"
