"""A dataset from bare arrays: what they are called, whether they are pictures, and what is held out of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pruning.data._dataset import Augmentation, Dataset
from pruning.data._duplicates import warn_of_duplicates
from pruning.data._label_sets import are_sets, label_sets, names_in, split_sets
from pruning.data._labels import Labels, class_indices, names_of
from pruning.notices import say
from sensai_serve.errors import DataError
from sensai_serve.preprocess import MODES, ImageSpec, InputSpec, Normalisation
from sensai_serve.tensors import Array

Picture = Literal["guess", "no", "RGB", "L"]
NAMES = {
    "x": ("x", "x_train", "train_images"),
    "y": ("y", "y_train", "train_labels"),
    "x_test": ("x_test", "test_images"),
    "y_test": ("y_test", "test_labels"),
    "labels": ("labels",),
}
"""What each array may be called."""
AT_A_TIME = 1 << 22
"""Numbers whose deviations from their mean are in memory at a time."""
UNNAMED = ("?",)
"""The labels of data that has none and does not name its classes."""


def from_arrays(
    name: str,
    arrays: Mapping[str, Any],
    *,
    seed: int,
    picture: Picture = "guess",
    flip: bool = False,
    hold_out: bool = True,
) -> Dataset:
    """A dataset from bare arrays.

    Args:
        name: what to call it.
        arrays: ``x`` [N, ...], ``y`` as `class_indices` takes it, or sets of labels as `label_sets` does, and, where
            there are, ``x_test``, ``y_test``, ``labels``; other names for them are in `NAMES`. Without a test part a
            stratified fifth of x is held out; without any y the dataset is not labelled.
        seed: of that draw.
        picture: whether x holds pictures, ``RGB`` or grey, [N, C, H, W], [N, H, W, C] or, grey ones, [N, H, W] of 0 to
            255 or 0 to 1; ``guess``: where it is of type uint8 and the first two shapes.
        flip: a mirrored picture is still of its class.
        hold_out: without a test part one is held out; else all of x is the test part too.

    Raises:
        DataError: an array is missing or does not fit the others.
    """
    given = _by_name(name, arrays)
    x = _numbers(name, "x", given["x"])
    test = _numbers(name, "x_test", given["x_test"]) if "x_test" in given else None
    labels = _label_names(name, given)
    labelled = "y" in given
    if not labelled:
        given["y"] = np.zeros(len(x), np.int64)
        if test is not None:
            given["y_test"] = np.zeros(len(test), np.int64)
        labels = labels or UNNAMED
    if several := are_sets(given["y"]):
        labels = labels or names_in(given["y"]) or tuple(map(str, range(_width(given["y"]) or 1)))
        y = label_sets(name, "training", given["y"], len(x), labels)
    else:
        y = class_indices(name, "training", given["y"], len(x), labels)
    if labels is None:
        labels = names_of(given["y"]) or tuple(map(str, range(_width(given["y"]) or int(y.max()) + 1)))
    mode = _mode(name, x, picture)
    if mode is not None:
        x, test = _pixels(name, x, mode), None if test is None else _pixels(name, test, mode)
    elif np.issubdtype(x.dtype, np.integer):
        say(
            f"{name}: x holds whole numbers ({x.dtype} {list(x.shape)}, {x.min()} to {x.max()}) and is standardised as "
            "readings are; ?mean=0&std=1 leaves them as they are"
        )
    if test is not None:
        x_test, y_test = test, given["y_test"]
        if several:
            y_test = label_sets(name, "test", y_test, len(x_test), labels)
        if x_test.shape[1:] != x.shape[1:]:
            raise DataError(f"{name}: test examples have shape {list(x_test.shape[1:])}, expected {list(x.shape[1:])}")
    elif not hold_out:
        x_test, y_test = x, y
    else:
        kept, held_out = split(y, 0.2, seed)
        x, y, x_test, y_test = x[kept], y[kept], x[held_out], y[held_out]
    if mode is not None and hold_out:
        warn_of_duplicates(name, _digests(x), _digests(x_test), (range(len(x)), range(len(x_test))))
    image = None if mode is None else ImageSpec(mode=mode, resize=(x.shape[2], x.shape[3]))
    scale = 1.0 if mode is None else 1 / 255
    spec = InputSpec(shape=tuple(x.shape[1:]), normalisation=moments_of(x, scale=scale), image=image)
    return Dataset(name, labels, spec, x, y, x_test, y_test, Augmentation(flip=flip), labelled=labelled)


def split(y: npt.NDArray[Any], fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Hold out `fraction` of each class.

    Args:
        y: [N] labels; sets of them as rows of 0 and 1 [N, C] are split as `split_sets` says.
        fraction: of each class, rounded, at least one example where the class has two or more.
        seed: of the draw.

    Returns:
        Indices that stay and indices held out, both ascending.
    """
    if y.ndim == 2:
        return split_sets(y, fraction, seed)
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == label))
        count = min(max(round(len(members) * fraction), 1), len(members) - 1) if fraction > 0 else 0
        held_out.append(members[:count])
    out = np.sort(np.concatenate(held_out)) if held_out else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(y)), out), out


def moments_of(x: npt.NDArray[Any], *, scale: float) -> Normalisation:
    """Mean and standard deviation of `x` [N, channels, ...] per channel, after scaling.

    A part of the examples at a time: their deviations take eight bytes a number.
    """
    axes, column = (0, *range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
    step = max(1, AT_A_TIME * len(x) // x.size)
    parts, count = [x[at : at + step] for at in range(0, len(x), step)], x.size // x.shape[1]
    mean = sum(part.sum(axis=axes, dtype=np.float64) for part in parts) / count
    squares = sum(np.square(part - mean.reshape(column)).sum(axis=axes) for part in parts)
    std = np.sqrt(squares / count) * abs(scale)
    std = np.where(std > 1e-12, std, 1.0)  # a constant reading carries nothing, and must not divide by 0
    return Normalisation(scale=scale, mean=tuple(map(float, mean * scale)), std=tuple(map(float, std)))


def _digests(x: Array) -> list[bytes]:
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]


def _by_name(name: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for meant, names in NAMES.items():
        present = [other for other in names if other in arrays]
        if len(present) > 1:
            raise DataError(f"{name}: has {present[0]} and {present[1]}, expected one of them")
        if present:
            found[meant] = arrays[present[0]]
    if "x" not in found:
        missing = ", ".join(part for part in ("x", "y") if part not in found)
        has = f", has {', '.join(map(str, arrays))}" if arrays else ""
        raise DataError(f"{name}: {missing} is missing{has}; expected arrays x and y (or x_train, y_train)")
    if ("x_test" in found) != ("y_test" in found) and ("y" in found or "y_test" in found):
        there, lacking = ("x_test", "y_test") if "x_test" in found else ("y_test", "x_test")
        raise DataError(f"{name}: {there} is there and {lacking} is not, expected both or neither")
    if unused := [str(key) for key in arrays if not any(key in names for names in NAMES.values())]:
        say(f"{name}: not used: {', '.join(unused)}")
    return found


def _numbers(name: str, part: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise DataError(f"{name}: {part} has rows of different shapes, expected finite numbers [N, ...]") from None
    if array.dtype.kind not in "biuf" or array.ndim < 2 or 0 in array.shape or not np.isfinite(array).all():
        raise DataError(f"{name}: {part} is {array.dtype} {list(array.shape)}, expected finite numbers [N, ...]")
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _label_names(name: str, given: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "labels" not in given:
        return None
    array = np.asarray(given["labels"])
    if array.ndim != 1:
        raise DataError(f"{name}: labels has shape {list(array.shape)}, expected one name for each class")
    return tuple(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in array.tolist()
    )


def _width(y: Any) -> int | None:
    """C of [N, C] one-hot rows."""
    shape = np.shape(y)
    return shape[1] if len(shape) == 2 and shape[1] > 1 else None


def _mode(name: str, x: Array, picture: Picture) -> Literal["RGB", "L"] | None:
    """Which pictures `x` holds; None where it holds none."""
    if picture in ("RGB", "L"):
        return "RGB" if picture == "RGB" else "L"
    if picture == "no" or x.dtype != np.uint8:
        return None
    if x.ndim == 4 and (channels := x.shape[1] if x.shape[1] in (1, 3) else x.shape[3]) in (1, 3):
        mode: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
        order = "[N, C, H, W]" if x.shape[1] in (1, 3) else "[N, H, W, C], turned to [N, C, H, W]"
        say(f"{name}: x is taken for {mode} pictures {order}; ?image=no if it holds none")
        return mode
    if x.ndim == 3:
        say(f"{name}: x is uint8 {list(x.shape)}; ?image=L if it holds grey pictures, which can then be sent as files")
    return None


def _pixels(name: str, x: Array, mode: Literal["RGB", "L"]) -> Array:
    """Pictures as [N, C, H, W] of 0 to 255."""
    channels = MODES[mode]
    if x.ndim == 3 and mode == "L":
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] != channels and x.shape[3] == channels:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if x.ndim != 4 or x.shape[1] != channels:
        raise DataError(
            f"{name}: x has shape {list(x.shape)}, expected [N, {channels}, H, W] or [N, H, W, {channels}] "
            f"for {mode} pictures"
        )
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 255:
        raise DataError(f"{name}: x holds {low:g} to {high:g}, expected pictures of 0 to 255 or 0 to 1, not normalised")
    return np.multiply(x, 255, dtype=x.dtype) if x.dtype.kind == "f" and high <= 1 else x
