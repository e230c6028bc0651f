"""A dataset of several inputs: an array for each, by the name that the network calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning.data._arrays import NAMES, from_arrays, moments_of
from pruning.data._dataset import Dataset
from pruning.data._packed import pack, packed_spec
from sensai_serve.errors import DataError, InputError
from sensai_serve.preprocess import InputSpec
from sensai_serve.tensors import Array

_OTHERS = tuple(other for meant, names in NAMES.items() if not meant.startswith("x") for other in names)
"""What labels may be called; no input has such a name."""


def from_several(name: str, arrays: Mapping[str, Any], names: Sequence[str], *, seed: int) -> Dataset:
    """A dataset of several inputs.

    Args:
        name: what to call it.
        arrays: an array [N, ...] for each of `names` and, where there is a test part, one called ``NAME_test``; labels
            and names of classes as `from_arrays` takes them. Floating-point numbers are normalised by the moments of
            the training part; whole numbers (INT64) and truth values (BOOL) go in as they are.
        names: of the network's inputs, in the order in which it takes them.
        seed: draws the test part where there is none.

    Raises:
        DataError: an array is missing or does not fit the others.
    """
    if not all(names) or len(set(names)) != len(names) or set(names) & set(_OTHERS):
        raise DataError(f"{name}: inputs are {', '.join(names)!r}, expected names, all different, of arrays of inputs")
    given = _part(name, arrays, names, "")
    tests = _part(name, arrays, names, "_test") if any(f"{each}_test" in arrays for each in names) else {}
    rows = {key: value for key, value in arrays.items() if key in _OTHERS}
    # from_arrays holds out a test part of numbers of examples, which say what is held out of each array
    rows["x"] = _numbers(len(given[names[0]]))
    if tests:
        rows["x_test"] = _numbers(len(tests[names[0]]))
    chosen = from_arrays(name, rows, seed=seed, picture="no")
    train, test = (part[:, 0].astype(np.int64) for part in (chosen.x, chosen.x_test))
    try:
        specs = tuple(_spec(each, given[each][train]) for each in names)
    except InputError as error:
        raise DataError(f"{name}: {error}") from None
    others = tests or given
    return dataclasses.replace(
        chosen,
        spec=packed_spec(specs),
        inputs=specs,
        x=pack(name, {each: given[each][train] for each in names}, specs),
        x_test=pack(name, {each: others[each][test] for each in names}, specs),
    )


def padded_rows(name: str, column: str, rows: Sequence[Any], length: int | None) -> Array:
    """Rows of different lengths as one array [N, length, ...], zeros behind the ends of the shorter ones.

    Args:
        name: of the data, for messages.
        column: what the rows are called.
        rows: N lists or arrays [length of its own, ...], or N numbers.
        length: places of a row; of longer ones the first are taken. None: as many as the longest has.

    Raises:
        DataError: rows of numbers and of lists, of other things, or of other shapes than by their lengths.
    """
    try:
        each = [np.asarray(row) for row in rows]
        tails = {(row.ndim, row.shape[1:]) for row in each if row.size}
        if len(tails) > 1 or not tails or any(row.dtype.kind not in "biuf" for row in each if row.size):
            raise ValueError
    except (ValueError, OverflowError, TypeError):
        raise DataError(f"{name}: {column} holds no lists of numbers of one shape, expected some in each row") from None
    ((ndim, tail),) = tails
    if ndim == 0:
        return np.asarray(each)
    most = max(len(row) for row in each) if length is None else length
    made = np.zeros((len(each), most, *tail), np.result_type(*(row.dtype for row in each if row.size)))
    for row, values in zip(made, each, strict=True):
        row[: len(values)] = values[:most]
    return made


def _part(name: str, arrays: Mapping[str, Any], names: Sequence[str], suffix: str) -> dict[str, Array]:
    """The arrays of the inputs in the training part, or in the test part, by the inputs' names."""
    if missing := [each for each in names if f"{each}{suffix}" not in arrays]:
        has = ", ".join(arrays) or "nothing"
        raise DataError(f"{name}: has no array {missing[0]}{suffix}, only {has}; expected one for each input")
    found = {each: _array(name, f"{each}{suffix}", arrays[f"{each}{suffix}"]) for each in names}
    if len({len(array) for array in found.values()}) > 1:
        counts = ", ".join(f"{len(array)} of {each}{suffix}" for each, array in found.items())
        raise DataError(f"{name}: has {counts}, expected as many of each")
    return found


def _array(name: str, each: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise DataError(f"{name}: {each} has rows of different shapes, expected numbers [N, ...]") from None
    if array.ndim == 1:
        array = array[:, None]
    if array.dtype.kind not in "biuf" or 0 in array.shape or array.ndim < 1 or not np.isfinite(array).all():
        raise DataError(f"{name}: {each} is {array.dtype} {list(array.shape)}, expected finite numbers [N, ...]")
    return array


def _numbers(count: int) -> npt.NDArray[np.float64]:
    return np.arange(count, dtype=np.float64)[:, None]


def _spec(name: str, array: Array) -> InputSpec:
    shape = tuple(array.shape[1:])
    if array.dtype.kind == "f":
        return InputSpec(shape, name, normalisation=moments_of(array, scale=1.0))
    return InputSpec(shape, name, "BOOL" if array.dtype.kind == "b" else "INT64")
