"""The inputs that a bundle of given files is checked, calibrated and measured with: a user's, or random ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from export.existing.given_file import FLOATS
from pruning.data import check_task, from_arrays, load, with_labels
from sensai_serve.errors import DataError, RequestError
from sensai_serve.merge.lost_workers import Labels
from sensai_serve.merge.rules import LabelTask
from sensai_serve.preprocess import InputSpec, normalise
from sensai_serve.tensors import Array, Inputs, NamedInputs, agree, arrays_of, inputs_of

RANDOM = 64
"""Random inputs that are drawn where there is no data."""
RawInputs = Callable[[tuple[InputSpec, ...]], Inputs]
"""Raw inputs of a bundle of those inputs, say read from files."""


@dataclass(frozen=True)
class Data:
    """Inputs of a data source, its test part, and their labels."""

    name: str
    x: Array
    """Raw [N, *spec.shape]: pixels or readings."""
    y: Labels
    """[N]; of sets of labels 0 and 1 [N, C]."""
    labels: tuple[str, ...]
    spec: InputSpec
    """How the source makes network inputs of them."""
    said: bool
    """Whether whoever named the source said how they are normalised."""

    def some(self, limit: int | None, seed: int) -> Data:
        """At most `limit` of them, drawn at random."""
        if limit is None or limit >= len(self.x):
            return self
        drawn = np.sort(np.random.default_rng(seed).choice(len(self.x), limit, replace=False))
        return replace(self, x=self.x[drawn], y=self.y[drawn])


def load_data(source: str, labels: Sequence[str] | None, seed: int, task: LabelTask = "single") -> Data:
    """The test part of a data source.

    Args:
        source: as ``sensai prune --data`` takes it.
        labels: of the classes, in the order of the files' outputs; the source's own where None.
        seed: draws the test part of a source that has none of its own.
        task: whether an input has one label or a set of them.

    Raises:
        DataError: there is no such data, or its classes are others than `labels`.
        PluginError: there is no source of that name.
    """
    dataset = load(source, seed=seed, task=task)
    if labels is not None:
        dataset = with_labels(dataset, tuple(labels))
    said = re.search(r"[?&](mean|std)=", source) is not None
    return Data(dataset.name, dataset.x_test, dataset.y_test, dataset.labels, dataset.spec, said)


def data_of_arrays(
    x: npt.ArrayLike, y: npt.ArrayLike, labels: Sequence[str] | None, task: LabelTask = "single"
) -> Data:
    """All of some labelled inputs.

    Args:
        x: raw inputs [N, ...].
        y: [N] their classes, or sets of them, 0 and 1 [N, C].
        labels: of the classes; those that `y` names, or numbers, where None.
        task: whether an input has one label or a set of them.

    Raises:
        DataError: they do not fit each other.
    """
    given = {"x": x, "y": y} if labels is None else {"x": x, "y": y, "labels": list(labels)}
    dataset = from_arrays("data", given, seed=0, hold_out=False)
    check_task("data", dataset, task)
    return Data(dataset.name, dataset.x, dataset.y, dataset.labels, dataset.spec, said=False)


def random_inputs(spec: InputSpec, element_type: int, seed: int) -> Array:
    """Random inputs [N, *shape], ready for the network.

    Args:
        spec: the bundle's input.
        element_type: of the files' inputs, ONNX's number of the type.
        seed: of the draw.
    """
    random, shape = np.random.default_rng(seed), (RANDOM, *spec.shape)
    if spec.image is not None or element_type == TensorProto.UINT8:
        return normalise(random.integers(0, 256, shape).astype(np.float32), spec)
    if element_type not in FLOATS:
        return random.integers(0, 2, shape).astype(spec.numpy)  # indices, of which more may not exist
    return random.normal(size=shape).astype(np.float32)


def ready(raw: Inputs, specs: tuple[InputSpec, ...], name: str) -> Inputs:
    """Raw inputs, ready for the network.

    Raises:
        DataError: there are none, or they are not what the bundle takes.
    """
    names = ", ".join(spec.name for spec in specs)
    if isinstance(raw, NamedInputs) is (len(specs) == 1):
        raise DataError(f"{name} is of {'several tensors' if len(specs) == 1 else 'one tensor'}, expected {names}")
    arrays = arrays_of(raw, specs)
    try:
        made = {spec.name: _ready(arrays[spec.name], spec, name) for spec in specs}
        agree({key: array.shape for key, array in made.items()}, specs)
    except RequestError as error:
        raise DataError(f"{name} does not fit: {error}") from None
    return inputs_of(made, specs)


def _ready(x: Array, spec: InputSpec, name: str) -> Array:
    if spec.misfit(x.shape, batch=True) or not len(x):
        raise DataError(f"{name} has shape {list(x.shape)}, expected {spec.batch_described}")
    return normalise(x, spec)
