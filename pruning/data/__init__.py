"""Data sources: labelled examples, raw as a user has them, and the way from them to the network's input.

A source is named ``NAME[:ARGUMENT][?option=value&...]``, say ``cifar10:DIR`` or ``folder:DIR?size=32``, or is any
``package.module:callable`` that returns a `Dataset`. A new source is one new file here with a function
``load(argument, options, seed) -> Dataset``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from sensai_serve import plugins
from sensai_serve.errors import DataError, InputError
from sensai_serve.preprocess import InputSpec, Normalisation

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images that do not change their class."""

    flip: bool = False
    """Mirror left and right, every second image."""
    shift: int = 0
    """Move by up to this many pixels along each axis; what comes in from outside is 0 after normalisation."""


@dataclass(frozen=True)
class Dataset:
    """A training and a test part, raw; `spec` says how the core makes network inputs of them."""

    name: str
    labels: tuple[str, ...]
    spec: InputSpec
    x: npt.NDArray[Any]
    """[N, *spec.shape], pixels or readings before normalisation."""
    y: Labels
    """[N]."""
    x_test: npt.NDArray[Any]
    y_test: Labels
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", _labels(self.name, "training", self.x, self.y, self))
        object.__setattr__(self, "y_test", _labels(self.name, "test", self.x_test, self.y_test, self))
        if len(set(self.labels)) != len(self.labels):
            raise DataError(f"{self.name}: two classes have the same label, expected all different")
        empty = np.flatnonzero(np.bincount(self.y, minlength=self.n_classes) == 0)
        if len(empty):
            raise DataError(
                f"{self.name}: class {self.labels[empty[0]]!r} has no training examples, expected at least one of each"
            )

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 over all arrays, so that a run knows its data again."""
        digest = hashlib.sha256()
        for array in (self.x, self.y, self.x_test, self.y_test):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load(source: str, *, seed: int = 0) -> Dataset:
    """The data that `source` names.

    Args:
        source: ``NAME[:ARGUMENT][?option=value&...]`` or ``package.module:callable``. Every source takes the options
            ``mean`` and ``std`` (comma-separated, in units of the scaled input), for weights trained with others.
        seed: draws the held-out test part where a source has none.

    Raises:
        DataError: nothing there, or damaged.
        PluginError: no source of that name.
    """
    place, _, query = source.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    name, _, argument = place.partition(":")
    if name in plugins.available(__name__):
        found = plugins.find(__name__, name, "load")
    else:
        found, argument = plugins.find(__name__, place, "load"), ""
    moments: dict[str, str] = {key: options.pop(key) for key in ("mean", "std") if key in options}
    try:
        dataset = found(argument, options, seed) if name in plugins.available(__name__) else found()
    except InputError as error:
        raise error if isinstance(error, DataError) else DataError(f"{place}: {error}") from None
    if isinstance(dataset, Mapping):
        dataset = from_arrays(place, dataset, seed=seed)
    if not isinstance(dataset, Dataset):
        raise DataError(f"{place}: gave {type(dataset).__name__}, expected a Dataset or a mapping with x and y")
    return _with_moments(dataset, moments) if moments else dataset


def absolute(source: str) -> str:
    """`source` with the path in it, where there is one, from the root: so that it is found from anywhere."""
    place, mark, query = source.partition("?")
    name, colon, argument = place.partition(":")
    if argument and Path(argument).exists():
        argument = str(Path(argument).resolve())
    return f"{name}{colon}{argument}{mark}{query}"


def from_arrays(name: str, arrays: Mapping[str, Any], *, seed: int) -> Dataset:
    """A dataset from bare arrays.

    Args:
        name: what to call it.
        arrays: ``x`` [N, ...], ``y`` [N] and, where there are, ``x_test``, ``y_test``, ``labels``. Without a test part
            a stratified fifth of x is held out.
        seed: of that draw.

    Raises:
        DataError: an array is missing or does not fit the others.
    """
    if missing := {"x", "y"} - set(arrays):
        raise DataError(f"{name}: {', '.join(sorted(missing))} is missing, expected arrays x and y")
    x, y = np.asarray(arrays["x"]), np.asarray(arrays["y"])
    if not np.issubdtype(x.dtype, np.number) or x.ndim < 2 or not np.isfinite(x).all():
        raise DataError(f"{name}: x is {x.dtype} {list(x.shape)}, expected finite numbers [N, ...]")
    if len(x) != len(y) or y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name}: y is {y.dtype} {list(y.shape)}, expected {len(x)} whole numbers")
    if "x_test" in arrays:
        x_test, y_test = np.asarray(arrays["x_test"]), np.asarray(arrays.get("y_test", ()))
    else:
        kept, held_out = split(y, 0.2, seed)
        x, y, x_test, y_test = x[kept], y[kept], x[held_out], y[held_out]
    n_classes = max(int(y.max(initial=-1)) + 1, 1)
    labels = tuple(map(str, arrays["labels"])) if "labels" in arrays else tuple(map(str, range(n_classes)))
    spec = InputSpec(shape=tuple(x.shape[1:]), normalisation=moments_of(x, scale=1.0))
    return Dataset(name, labels, spec, x, y, x_test, y_test)


def split(y: npt.NDArray[Any], fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Hold out `fraction` of each class.

    Args:
        y: [N] labels.
        fraction: of each class, rounded, at least one example where the class has two or more.
        seed: of the draw.

    Returns:
        Indices that stay and indices held out, both ascending.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == label))
        count = min(max(round(len(members) * fraction), 1), len(members) - 1) if fraction > 0 else 0
        held_out.append(members[:count])
    out = np.sort(np.concatenate(held_out)) if held_out else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(y)), out), out


def moments_of(x: npt.NDArray[Any], *, scale: float) -> Normalisation:
    """Mean and standard deviation of `x` [N, channels, ...] per channel, after scaling."""
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axis=axes, dtype=np.float64) * scale
    std = x.std(axis=axes, dtype=np.float64) * abs(scale)
    std = np.where(std > 1e-12, std, 1.0)  # a constant reading carries nothing, and must not divide by 0
    return Normalisation(scale=scale, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def existing(path: str | Path, what: str) -> Path:
    """`path`, if there is something.

    Raises:
        DataError: there is nothing.
    """
    if not str(path) or not Path(path).exists():
        raise DataError(f"{what}: {str(path)!r} is not there, expected a path")
    return Path(path)


def take_options(name: str, options: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Refuse options that a source does not have.

    Raises:
        DataError: one is unknown.
    """
    if unknown := sorted(set(options) - set(known)):
        raise DataError(f"{name}: unknown option {unknown[0]!r}, expected {', '.join((*known, 'mean', 'std'))}")


def _labels(name: str, part: str, x: npt.NDArray[Any], y: npt.NDArray[Any], dataset: Dataset) -> Labels:
    if len(x) != len(y) or len(x) == 0:
        raise DataError(f"{name}: the {part} part has {len(x)} examples and {len(y)} labels, expected as many, not 0")
    if x.shape[1:] != dataset.spec.shape:
        raise DataError(f"{name}: {part} examples have shape {list(x.shape[1:])}, expected {list(dataset.spec.shape)}")
    if y.min() < 0 or y.max() >= dataset.n_classes:
        bad = int(y.min() if y.min() < 0 else y.max())
        raise DataError(f"{name}: the {part} part has label {bad}, expected 0 to {dataset.n_classes - 1}")
    return np.asarray(y, np.int64)


def _with_moments(dataset: Dataset, moments: Mapping[str, str]) -> Dataset:
    try:
        values: dict[str, Any] = {key: tuple(map(float, text.split(","))) for key, text in moments.items()}
        norm = dataclasses.replace(dataset.spec.normalisation, **values)
        return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, normalisation=norm))
    except (ValueError, InputError) as error:
        raise DataError(f"{dataset.name}: mean or std does not fit ({error})") from None
