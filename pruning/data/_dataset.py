"""A dataset: labelled examples, raw as a user has them, and the way from them to the network's input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning.data._label_sets import are_sets, check_occurrence, label_sets
from pruning.data._labels import Labels, class_indices
from pruning.data._packed import packed_spec, unpack
from sensai_serve.errors import DataError
from sensai_serve.merge.rules import LabelTask
from sensai_serve.preprocess import InputSpec, normalise
from sensai_serve.tensors import Inputs
from sensai_serve.text_spec import TooLong


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training examples that do not change their class; inputs of one axis are never changed."""

    flip: bool = False
    """Mirror left and right, every second picture."""
    shift: int = 0
    """Move a picture by up to this many pixels along each axis, or a series [channels, steps] by so many steps; what
    comes in from outside is 0 after normalisation."""


@dataclass(frozen=True)
class Tokenizer:
    """What made the tokens of texts, for bundles to do the same."""

    data: bytes
    """A ``tokenizer.json`` of the library `tokenizers`."""
    padding: int = 0
    """The token behind the end of a text."""
    too_long: TooLong = "refuse"
    """What a server does with texts of more tokens than an example has; in training and evaluation they are cut."""


@dataclass(frozen=True)
class Dataset:
    """A training and a test part, raw; `spec` says how the core makes network inputs of them."""

    name: str
    labels: tuple[str, ...]
    spec: InputSpec
    x: npt.NDArray[Any]
    """[N, *spec.shape], pixels or readings before normalisation."""
    y: Labels
    """[N]; given as `class_indices` takes it. Of sets of labels 0 and 1 [N, C]; given as `label_sets` takes them."""
    x_test: npt.NDArray[Any]
    y_test: Labels
    augmentation: Augmentation = Augmentation()
    inputs: tuple[InputSpec, ...] = ()
    """What the network takes and clients send, where that is not the FP32 tensor of `spec`: inputs of other datatypes,
    or several by name. `x` holds them side by side then; see `pruning.data._packed`."""
    tokenizer: Tokenizer | None = None
    """What made the tokens, of texts; None where nobody knows."""
    labelled: bool = True
    """Whether `y` and `y_test` say anything; else a network's answers may become the labels (`answered`)."""

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            raise DataError(f"{self.name}: two classes have the same label, or there is none, expected all different")
        if self.inputs and packed_spec(self.inputs).shape != self.spec.shape:
            raise DataError(f"{self.name}: inputs are of {packed_spec(self.inputs).shape}, expected {self.spec.shape}")
        several = are_sets(self.y)
        for x, y, part in ((self.x, "y", "training"), (self.x_test, "y_test", "test")):
            if len(x) == 0:
                raise DataError(f"{self.name}: the {part} part has no examples, expected some")
            if x.shape[1:] != self.spec.shape:
                raise DataError(
                    f"{self.name}: {part} examples have shape {list(x.shape[1:])}, expected {list(self.spec.shape)}"
                )
            read = label_sets if several else class_indices
            object.__setattr__(self, y, read(self.name, part, getattr(self, y), len(x), self.labels))
        if several:
            check_occurrence(self.name, self.y, self.labels)
            return
        empty = np.flatnonzero(np.bincount(self.y, minlength=self.n_classes) == 0)
        if len(empty) and self.labelled:
            raise DataError(
                f"{self.name}: class {self.labels[empty[0]]!r} has no training examples, expected at least one of each"
            )

    @property
    def task(self) -> LabelTask:
        """Whether an example has one label or a set of them."""
        return "single" if self.y.ndim == 1 else "multilabel"

    @property
    def network_inputs(self) -> tuple[InputSpec, ...]:
        """What the network takes and clients send: `inputs`, or the one of `spec`."""
        return self.inputs or (self.spec,)

    def prepared(self, raw: npt.NDArray[Any]) -> Inputs:
        """Rows [N, *spec.shape] of `x` or `x_test` as the network takes them: normalised, and apart where `x` holds
        several inputs."""
        x = normalise(raw, self.spec)
        return unpack(x, self.inputs) if self.inputs else x

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.labels)

    def answered(self, y: Labels, y_test: Labels) -> Dataset:
        """The same examples with a network's answers [N], or sets of labels [N, C], to both parts as their labels.

        Raises:
            DataError: some class is the answer to none of the training part.
        """
        given = y.tolist() if y.ndim == 1 else np.flatnonzero(y.any(axis=0)).tolist()
        missing = sorted(set(range(self.n_classes)) - set(given))
        if missing:
            more = f" and {len(missing) - 1} more classes" if len(missing) > 1 else ""
            raise DataError(
                f"{self.name}: the reference answers none of {len(y)} training examples with "
                f"{self.labels[missing[0]]!r}{more}, expected some of every class"
            )
        return replace(self, y=y, y_test=y_test, labelled=True)

    def digest(self) -> str:
        """SHA-256 over all arrays, so that a run knows its data again."""
        digest = hashlib.sha256()
        for array in (self.x, self.y, self.x_test, self.y_test):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
